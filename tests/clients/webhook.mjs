// Receives one webhook, and verifies it with the official library of Standard Webhooks.
// Environment: SECRETS (with commas between), PORT_FILE (where the port is written).
import { writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { Webhook } from "standardwebhooks";

const secrets = process.env.SECRETS.split(",");
const other = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

function refuses(secret, body, headers) {
  try {
    new Webhook(secret).verify(body, headers);
    return false;
  } catch {
    return true;
  }
}

function end(problems) {
  console.log("webhook, node:", problems.join("; ") || "ok");
  process.exit(problems.length ? 1 : 0);
}

const server = createServer(async (request, response) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const body = Buffer.concat(chunks).toString();
  const problems = [];
  for (const secret of secrets) {
    if (refuses(secret, body, request.headers)) problems.push("a signature is refused");
    else if (new Webhook(secret).verify(body, request.headers).type !== "test") problems.push("the body is another");
  }
  if (!refuses(other, body, request.headers) || !refuses(secrets[0], `${body} `, request.headers)) {
    problems.push("what is not ours is taken");
  }
  response.writeHead(problems.length ? 500 : 204).end(() => end(problems));
});
server.listen(0, "127.0.0.1", () => writeFileSync(process.env.PORT_FILE, String(server.address().port)));
setTimeout(() => end(["nothing came"]), 30_000).unref();
