// Asks over HTTP/2 and says as JSON what came before the answer, and the answer: `interim.mjs PORT PATH`.
import fs from 'node:fs';
import http2 from 'node:http2';

const [, , port, path] = process.argv;
const ca = fs.readFileSync(process.env.NODE_EXTRA_CA_CERTS);
const told = { interim: [], status: 0, body: '' };

function done() {
  console.log(JSON.stringify(told));
  process.exit(0);
}

const session = http2.connect(`https://edge.demo.test:${port}`, { ca });
session.on('error', (error) => { told.error = error.code; done(); });
const stream = session.request({ ':path': path });
stream.on('headers', (headers) => told.interim.push({ ...headers }));
stream.on('response', (headers) => (told.status = headers[':status']));
stream.setEncoding('utf8');
stream.on('data', (text) => (told.body += text));
stream.on('error', (error) => { told.error = error.code; done(); });
stream.on('end', done);
