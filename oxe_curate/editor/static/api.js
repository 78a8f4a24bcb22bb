// Requests to the editor's server.

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** JSON from the server. Throws Refused for an error response, TypeError without a response. */
async function call(path, options) {
  const response = await fetch(path, { credentials: "same-origin", ...options });
  const type = response.headers.get("content-type") ?? "";
  const body = type.startsWith("application/json") ? await response.json() : { error: (await response.text()).trim() };
  if (!response.ok) throw new Refused(body.error ?? response.statusText, response.status);
  return body;
}

export const get = (path) => call(path);
export const post = (path, body) =>
  call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
