// Questions to the admin listener that served this page, and the token that opens it. The token is kept for this tab
// alone and is sent nowhere else.

const place = "sameflight-admin-token";

export const token = {
  read: () => sessionStorage.getItem(place) || "",
  keep: (text) => sessionStorage.setItem(place, text),
  forget: () => sessionStorage.removeItem(place),
};

export class Refusal extends Error {
  constructor(status, code, message, body) {
    super(message);
    this.status = status;
    this.code = code;
    this.body = body;
  }
}

// The answer as JSON; throws a `Refusal` for anything but success, with status 0 where nobody answered.
export async function ask(path, { method = "GET", body, signal } = {}) {
  const headers = {};
  const known = token.read();
  if (known) headers.Authorization = `Bearer ${known}`;
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    headers["X-Sameflight-Actor"] = "dashboard";
  }
  let response;
  try {
    response = await fetch(path, {
      method, headers, signal, cache: "no-store", credentials: "omit", redirect: "error",
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "no_answer", "The proxy does not answer.", null);
  }
  let answer = null;
  try {
    answer = await response.json();
  } catch { /* judged by its status */ }
  if (response.ok) return answer;
  const error = answer?.error;
  throw new Refusal(response.status, error?.code ?? "", error?.message ?? `Status ${response.status}.`, answer);
}
