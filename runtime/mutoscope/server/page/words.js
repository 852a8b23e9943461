/** How values, states and errors read. Knows the names of parameters, and no element of the page. */

const LABELS = {
  image: "First picture",
  last_image: "Last picture",
  video: "Given video",
  extend: "Video to go on from",
  reference_images: "References",
  loras: "LoRAs",
  loras_2: "LoRAs of the second denoiser",
  num_frames: "Frames",
  num_inference_steps: "Steps",
  fps: "Frames per second",
  sigmas: "Noise levels",
  max_sequence_length: "Prompt tokens",
};
const STAGES = { loading: "Loading the model", condition: "Reading the prompt", denoise: "First step", decode: "Last frames" };

/** The heading of a parameter. One that is new here gets its name in plain letters. */
export function label(name) {
  return LABELS[name] ?? capital(name.replaceAll("_", " "));
}

/** What a parameter does and which values it takes. */
export function hint({ help, minimum, maximum, step }) {
  const known = typeof minimum === "number" && typeof maximum === "number";
  const limits = known ? ` ${minimum} to ${maximum}${step > 1 ? `, in steps of ${step}` : ""}.` : "";
  return `${capital(help)}.${limits}`;
}

/** A message of the server, as a sentence that names a field as the page does. */
export function sentence(message) {
  const named = message.replace(/^[a-z]+(_[a-z]+)*(?= (must|is|are|and|has|may|does) )/, label);
  return capital(named) + (/[.!?]$/.test(named) ? "" : ".");
}

/** A time as people say it. */
export function duration(seconds) {
  if (seconds < 9.95) return `${Number(seconds.toFixed(1))} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** How far a video is, in one line. */
export function howFar(video, ahead) {
  if (video.state === "queued") return ahead === 0 ? "Next in the queue" : `Waits behind ${plural(ahead, "other video")}`;
  if (video.state === "completed") return `Finished${madeIn(video)}`;
  if (video.state !== "running") return video.state === "cancelled" ? "Cancelled" : "Failed";
  return `${doing(video)}${left(video)}`;
}

/** Model, size, length, steps and seed of a video. */
export function facts({ model, request, size, seconds, seed, num_frames: frames }) {
  return [
    model,
    size.replace("x", " × "),
    `${plural(frames, "frame")}, ${duration(Number(seconds))}`,
    plural(request.num_inference_steps, "step"),
    `seed ${seed}`,
  ].join(" · ");
}

/** The same for one who has little space. */
export function shortFacts({ size, seconds }) {
  return `${size.replace("x", " × ")} · ${duration(Number(seconds))}`;
}

/** When a video was asked for. */
export function when({ created_at: seconds }) {
  const date = new Date(seconds * 1000);
  const today = date.toDateString() === new Date().toDateString();
  return date.toLocaleString([], today ? { timeStyle: "short" } : { dateStyle: "medium", timeStyle: "short" });
}

export function plural(count, noun) {
  return `${count} ${noun}${Number(count) === 1 ? "" : "s"}`;
}

function doing({ stage, step, steps, frames_written: frames, num_frames: all }) {
  if (stage === "denoise" && step) return `Step ${step} of ${steps}`;
  if (stage === "decode" && frames) return `Frame ${frames} of ${all}`;
  return STAGES[stage] ?? "Begins";
}

function left({ stage, seconds_left: seconds }) {
  return stage === "denoise" && seconds ? `, about ${duration(seconds)} left` : "";
}

function madeIn({ times_s: times }) {
  const seconds = Object.values(times ?? {}).reduce((sum, each) => sum + each, 0);
  return seconds ? ` in ${duration(seconds)}` : "";
}

function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
