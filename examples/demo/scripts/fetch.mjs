// A script as anybody would write it: it knows nothing of Countersign.
const answer = await fetch(process.argv[2]);
console.log(answer.status, (await answer.json()).caller);
