// GitHub's token issuer for tests: the keys and their addresses are oauth2-mock-server's, and a second port
// answers as a runner's ACTIONS_ID_TOKEN_REQUEST_URL does. Claims come as JSON lines on standard input.
import { createServer } from "node:http";
import { createInterface } from "node:readline";
import { createRequire } from "node:module";

const require = createRequire(process.argv[2] + "/");
const { OAuth2Server } = await import(require.resolve("oauth2-mock-server"));
const bearer = process.argv[3];
const server = new OAuth2Server();
await server.issuer.keys.generate("RS256");
await server.start(0, "127.0.0.1");
let claims = {};
let number = 0;

const runner = createServer(async (request, answer) => {
  const asked = new URL(request.url, "http://runner");
  if (request.headers.authorization !== `Bearer ${bearer}`) {
    answer.writeHead(401).end("{}");
    return;
  }
  const now = Math.floor(Date.now() / 1000);
  const value = await server.issuer.buildToken({
    scopesOrTransform: (_header, payload) => {
      const told = { jti: `token-${process.pid}-${++number}`, nbf: now - 5, iat: now, exp: now + 300 };
      Object.assign(payload, told, { aud: asked.searchParams.get("audience") }, claims);
    },
  });
  answer.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify({ value }));
});
await new Promise((done) => runner.listen(0, "127.0.0.1", done));
createInterface({ input: process.stdin })
  .on("line", (line) => {
    claims = JSON.parse(line);
    console.log(JSON.stringify({ claims: true }));
  })
  .on("close", () => process.exit(0));
console.log(JSON.stringify({ issuer: server.issuer.url, request: `http://127.0.0.1:${runner.address().port}/?api-version=2.0` }));
