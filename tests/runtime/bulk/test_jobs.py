"""A file of jobs is checked as a whole: every bad line is named with its number and what is allowed."""

from __future__ import annotations

import json

import pytest
from mutoscope import OutputOptions, RequestError
from mutoscope.bulk.jobs import JobsError, parse_job, read_jobs


def read(path, pipeline):
    return read_jobs(path, pipeline, ".npy", OutputOptions()).tasks


def test_every_bad_line_is_named_at_once_with_its_number(pipeline, write):
    path = write(
        {"prompt": "a circle", "id": "one"},
        "",
        {"promt": "a circle"},
        {"prompt": "a circle", "height": 33},
        {"prompt": "a circle", "id": "one"},
        {"prompt": "a circle", "repeat": 0, "id": ""},
        {"prompt": "a circle", "seed": 2**64 - 1, "repeat": 2},
        '{"prompt": "a circle", "prompt": "a square"}',
        '{"prompt": "a circle", "guidance_scale": NaN}',
        '{"prompt": ',
        '["a circle"]',
        '{"prompt": "a circle", "seed": ' + "1" * 5000 + "}",
        "[" * 100_000,
    )
    with pytest.raises(JobsError, match="has errors in 11 lines, so no video was made") as caught:
        read(path, pipeline)
    found = {problem.line: problem.cause for problem in caught.value.problems}
    assert list(found) == list(range(3, 14))
    assert "prompt" in found[3] and "promt" in found[3]
    assert "32" in found[4] and "33" in found[4]  # the nearest height that fits
    assert "line 1" in found[5]
    assert "id must be text" in found[6] and "repeat" in found[6]
    assert "seeds up to" in found[7]
    assert "twice" in found[8]
    assert "NaN is not a number" in found[9]
    assert "not JSON at character" in found[10]
    assert "a job must be a JSON object" in found[11]
    assert found[12].startswith("this is not JSON")
    assert "nested too deeply" in found[13]


def test_the_policy_is_asked_about_every_job_that_can_be_done_and_its_refusals_are_bad_lines(pipeline, write):
    asked = []

    def policy(request):
        asked.append((request.prompt, request.seed))
        return "no squares" if "square" in request.prompt else None

    path = write(
        {"prompt": "a square", "seed": 1},
        {"prompt": "a circle", "seed": 2, "repeat": 3},
        {"prompt": "a square", "height": 33},
        {"prompt": "a square", "seed": 4},
    )
    with pytest.raises(JobsError) as caught:
        read_jobs(path, pipeline, ".npy", OutputOptions(), policy)
    found = {problem.line: problem.cause for problem in caught.value.problems}
    assert found[1] == found[4] == "refused: no squares" and "height" in found[3] and 2 not in found
    assert asked == [("a square", 1), ("a circle", 2), ("a square", 4)]


def test_a_single_bad_line_is_one_line(pipeline, write):
    with pytest.raises(JobsError, match="1 line, so"):
        read(write({"prompt": "a circle"}, {"prompt": "a circle", "id": 5}), pipeline)


def test_a_file_that_is_missing_empty_or_no_text_is_refused(pipeline, write, tmp_path):
    with pytest.raises(RequestError, match="cannot be read"):
        read(tmp_path / "none", pipeline)
    with pytest.raises(RequestError, match="has no jobs"):
        read(write("", " "), pipeline)
    (tmp_path / "latin").write_bytes(b'{"prompt": "caf\xe9"}')
    with pytest.raises(RequestError, match="is not UTF-8 at byte 15"):
        read(tmp_path / "latin", pipeline)


def test_a_job_without_seed_gets_the_same_one_each_time_and_repeats_count_on(pipeline, write):
    path = write({"prompt": "a circle", "repeat": 3}, {"prompt": "a circle", "id": "other"}, {"prompt": "a", "seed": 5})
    tasks = read(path, pipeline)
    assert tasks == read(path, pipeline)
    first = tasks[0].request.seed
    assert [task.request.seed for task in tasks[:3]] == [first, first + 1, first + 2]
    assert tasks[3].request.seed != first and tasks[4].request.seed == 5
    assert len({task.key for task in tasks}) == 5
    assert [task.name for task in tasks] == ["1", "1, repeat 2", "1, repeat 3", "other", "3"]


def test_each_of_several_files_is_relative_to_the_file_of_jobs(tmp_path):
    line = {
        "prompt": "a cat",
        "video": "clip.mp4",
        "mask": "mask.png",
        "reference_images": ["cat.png", "shots/hat.png"],
    }
    job = parse_job(1, json.dumps(line), tmp_path)
    assert (job.seeded.video, job.seeded.mask) == (str(tmp_path / "clip.mp4"), str(tmp_path / "mask.png"))
    assert job.seeded.reference_images == (str(tmp_path / "cat.png"), str(tmp_path / "shots" / "hat.png"))
    assert parse_job(1, json.dumps(line | {"mask": "other.png"}), tmp_path).seeded.seed == job.seeded.seed


def test_the_same_video_has_the_same_key_however_it_is_asked_for(pipeline, write):
    defaults = {"height": 32, "width": 48, "num_inference_steps": 3}
    tasks = read(
        write(
            {"prompt": "a circle", "seed": 1, "meta": {"shot": 1}},
            {"prompt": "a circle", "seed": 1, **defaults, "id": "x"},
            {"prompt": "a circle", "seed": 1, "num_inference_steps": 2},
        ),
        pipeline,
    )
    assert tasks[0].key == tasks[1].key != tasks[2].key
    assert tasks[0].meta == {"shot": 1}


def test_line_separators_within_json_texts_do_not_end_a_line(pipeline, write):
    (task,) = read(write('{"prompt": "a\u2028circle", "seed": 1}'), pipeline)
    assert task.request.prompt == "a\u2028circle"
