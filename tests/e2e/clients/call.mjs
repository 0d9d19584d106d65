const answer = await fetch("https://secure.services.svc/v1/charges/3");
console.log((await answer.text()).trim());
process.exit(answer.ok ? 0 : 1);
