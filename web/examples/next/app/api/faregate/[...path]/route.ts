import { GATE, serviceKey, signedInUser } from "../../../../lib/gate";

/** What the page may ask for the signed-in user. Deducting and holding credits is the server's own business. */
const ALLOWED = /^(credits\/check|plans|usage|events|notifications|billing\/(checkout|portal|subscription|history))$/;
const PASSED = ["accept", "content-type", "idempotency-key", "last-event-id"];

async function pass(request: Request, { params }: { params: Promise<{ path: string[] }> }): Promise<Response> {
  const path = (await params).path.join("/");
  const user = await signedInUser();
  if (user === null) return Response.json({ detail: "sign in first" }, { status: 401 });
  if (!ALLOWED.test(path)) return Response.json({ detail: "no such path here" }, { status: 404 });
  const headers = new Headers({ authorization: `Bearer ${serviceKey()}`, "x-faregate-user": user });
  for (const name of PASSED) {
    const value = request.headers.get(name);
    if (value !== null) headers.set(name, value);
  }
  const body = request.method === "GET" ? null : await request.text();
  const answer = await fetch(`${GATE}/api/${path}${new URL(request.url).search}`, {
    method: request.method,
    headers,
    body,
    cache: "no-store",
    signal: request.signal,
  });
  const kept = new Headers({ "cache-control": "no-store" });
  for (const name of ["content-type", "x-request-id", "retry-after"]) {
    const value = answer.headers.get(name);
    if (value !== null) kept.set(name, value);
  }
  return new Response(answer.body, { status: answer.status, headers: kept });
}

export { pass as DELETE, pass as GET, pass as PATCH, pass as POST };
