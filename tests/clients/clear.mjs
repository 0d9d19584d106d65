// An application of HTTP/2 in the clear: `clear.mjs ORIGIN PATH…` asks for all paths at once on one connection, with a
// credential of its own; what is asked of /echo has a body, and /ws is an extended CONNECT (RFC 8441) that says one word
// and waits to hear it. The last line tells what came back for each.
import http2 from 'node:http2';

const [, , origin, ...paths] = process.argv;
const session = http2.connect(origin);
const sent = 'x'.repeat(100000);

function ask(path) {
  return new Promise((resolve) => {
    const told = { path, status: 0, length: 0, trailers: {} };
    const method = { '/echo': 'POST', '/ws': 'CONNECT' }[path] ?? 'GET';
    const protocol = method === 'CONNECT' ? { ':protocol': 'websocket', ':scheme': 'http' } : {};
    const fields = { ':method': method, ':path': path, authorization: 'Bearer theirs', ...protocol };
    const stream = session.request(fields, { endStream: false });
    stream.on('response', (headers) => { told.status = headers[':status']; told.code = headers['countersign-code']; });
    stream.on('data', (data) => {
      told.length += data.length;
      if (method === 'CONNECT') stream.end();
    });
    stream.on('trailers', (trailers) => { told.trailers = { ...trailers }; });
    stream.on('error', (error) => { told.error = error.message; });
    stream.on('close', () => resolve(told));
    if (method === 'CONNECT') stream.write('word');
    else stream.end(method === 'POST' ? sent : undefined);
  });
}

session.on('error', (error) => { console.error(error); process.exit(1); });
await new Promise((resolve) => session.once('remoteSettings', resolve));
console.log(JSON.stringify(await Promise.all(paths.map(ask))));
session.close();
