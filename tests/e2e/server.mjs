// A service with TLS that says who its caller is by the token that came with the request. Whether the token is good is
// what examples/kubernetes/service.yaml checks.
import { readFileSync } from "node:fs";
import { createServer } from "node:https";

const tls = { cert: readFileSync("/tls/tls.crt"), key: readFileSync("/tls/tls.key") };
createServer(tls, (request, response) => {
  const [, body] = (request.headers.authorization ?? "").split(".");
  if (!body) return response.writeHead(401).end("no token\n");
  const { sub } = JSON.parse(Buffer.from(body, "base64url"));
  response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify({ path: request.url, caller: sub }) + "\n");
}).listen(8443);
