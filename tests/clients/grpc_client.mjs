// What a program of grpc-js does and reads, as JSON lines: `grpc_client.mjs HOST:PORT [unary]`.
import fs from 'node:fs';
import grpc from '@grpc/grpc-js';

const [, , host, one] = process.argv;
const bytes = { requestSerialize: (v) => v, requestDeserialize: (v) => v, responseSerialize: (v) => v, responseDeserialize: (v) => v };
const method = (name, streams) => ({ path: `/demo.Echo/${name}`, requestStream: streams, responseStream: streams, ...bytes });
const Echo = grpc.makeGenericClientConstructor({
  unary: method('Unary', false),
  serverStreaming: method('ServerStreaming', true),
  clientStreaming: method('ClientStreaming', true),
  bidirectional: method('Bidirectional', true),
  slow: method('Slow', false),
  fails: method('Fails', false),
});
const client = new Echo(host, grpc.credentials.createSsl(fs.readFileSync(process.env.NODE_EXTRA_CA_CERTS)));
const within = (ms) => ({ deadline: Date.now() + ms });

function told(call, error, got = []) {
  const why = error?.metadata?.get('why')[0] ?? '';
  console.log(JSON.stringify({ call, code: error?.code ?? 0, message: error?.details ?? '', got: got.map(String), why }));
}

const unary = (name, message, deadline) =>
  new Promise((done) => client[name](Buffer.from(message), deadline, (error, answer) => done([error, answer])));

// Sends the first message, and each next one once an answer has come if `turns`, else at once.
function stream(name, messages, turns) {
  return new Promise((done) => {
    const call = client[name](within(15000));
    const got = [];
    const rest = messages.map((text) => Buffer.from(text));
    const next = () => (rest.length ? call.write(rest.shift()) : call.end());
    call.on('data', (answer) => { got.push(answer); if (turns) next(); });
    call.on('error', (error) => done([error, got]));
    call.on('end', () => done([null, got]));
    if (turns) next();
    else { while (rest.length) next(); next(); }
  });
}

if (one) {
  const [error] = await unary('unary', 'hello', within(15000));
  if (error) { console.error(error.message); process.exitCode = 1; }
} else {
  const [error, answer] = await unary('unary', 'hello', within(15000));
  told('unary', error, [answer]);
  told('server streaming', ...(await stream('serverStreaming', ['3'], false)));
  told('client streaming', ...(await stream('clientStreaming', ['a', 'b', 'c'], false)));
  told('bidirectional', ...(await stream('bidirectional', ['ping', 'pong'], true)));
  told('deadline', ...(await unary('slow', '', within(3000))).slice(0, 1));
  told('status', ...(await unary('fails', '', within(15000))).slice(0, 1));
}
client.close();
