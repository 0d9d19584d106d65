// What a program of ws does and reads: `websocket_client.mjs URL`.
import WebSocket from 'ws';

const socket = new WebSocket(process.argv[2]);
const messages = ['text', Buffer.from([0, 1, 2]), 'x'.repeat(100000)];
const told = { call: 'websocket', echoed: [], pong: false };
const next = () => socket.send(messages[told.echoed.length] ?? 'close');
socket.on('open', () => { socket.ping(); next(); });
socket.on('pong', () => (told.pong = true));
socket.on('message', (data, binary) => {
  const expected = messages[told.echoed.length];
  told.echoed.push(binary ? data.equals(expected) : data.toString() === expected);
  next();
});
socket.on('close', (code, reason) => {
  console.log(JSON.stringify({ ...told, close: code, reason: reason.toString() }));
});
socket.on('error', (error) => {
  console.error(error.message);
  process.exitCode = 1;
});
