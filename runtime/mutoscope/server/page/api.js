/** Asks the server, and turns its errors into sentences. Knows HTTP, and nothing of the page. */

/** An answer that is an error. `status` is 0 where no answer came. */
export class Refusal extends Error {
  constructor(status, { message, param = null, code = null }) {
    super(message);
    Object.assign(this, { status, param, code });
  }
}

const unauthorized = [];

/** Calls `action` whenever the server says that it does not know who asks. */
export function onUnauthorized(action) {
  unauthorized.push(action);
}

/** The answer to a request, as an object. `body` may be a form, or an object that becomes JSON. */
export async function ask(method, path, body) {
  const asJson = body !== undefined && !(body instanceof FormData);
  const response = await fetch(path, {
    method,
    body: asJson ? JSON.stringify(body) : body,
    headers: asJson ? { "content-type": "application/json" } : {},
  }).catch(() => {
    throw new Refusal(0, { message: "The server does not answer. Try again once it runs." });
  });
  const answer = await read(response);
  if (response.ok) return answer;
  if (response.status === 401 && path !== "v1/session") unauthorized.forEach((action) => action());
  throw new Refusal(response.status, answer.error ?? { message: `The server answered with status ${response.status}.` });
}

/** The files that were sent for a video: the field of each, and what it is called among the contents of the video. */
export function sentFor(request) {
  const one = ["image", "last_image", "video", "extend", "mask"].filter((field) => request[field]);
  const references = (request.reference_images ?? []).map((_, place) => `reference_${place + 1}`);
  return [
    ...one.map((field) => ({ field, variant: field === "video" ? "given_video" : field })),
    ...references.map((variant) => ({ field: "reference_images", variant })),
  ];
}

/** Where a file of a video lies: "video", "thumbnail", "image" and so on. */
export function content(id, variant = "video") {
  return `v1/videos/${id}/content?variant=${variant}`;
}

/** A file that was sent for a video, once more. */
export async function sentFile(id, variant) {
  const response = await fetch(content(id, variant)).catch(() => null);
  if (!response?.ok) throw new Refusal(response?.status ?? 0, { message: "The server does not give the file any more." });
  const blob = await response.blob();
  return new File([blob], `${variant}.${blob.type.split("/")[1]}`, { type: blob.type });
}

/** JSON, with whole numbers that JavaScript cannot hold as their text: a seed must not change on its way. */
export function parse(text) {
  return JSON.parse(text, (_, value, context) =>
    Number.isInteger(value) && !Number.isSafeInteger(value) && context ? context.source : value);
}

async function read(response) {
  const text = await response.text();
  try {
    return parse(text);
  } catch {
    return {}; // a proxy in between answered
  }
}
