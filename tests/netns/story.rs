//! The main job, end to end: what the demo shows, as a test, as root and rootless.

use std::time::Duration;

use tests::sandbox::{As, PRIVATE, PROGRAMS, Place};
use tests::world::{CONTROL_ROOT, PAYMENTS, SOCKET};
use tests::{Egress, Evidence, Mode, Sandbox, World, search};

use crate::{events, eventually};

const CHARGE: &str = "/v1/charges/42";

fn worlds(story: impl Fn(World)) {
    for mode in [Mode::Root, Mode::Rootless] {
        let sandbox = if mode == Mode::Root { Sandbox::new() } else { Sandbox::rootless() };
        let mut world = World::within(sandbox.unwrap()).unwrap();
        world.start_issuer().unwrap();
        world.start_service().unwrap();
        world.start_control(Egress::Enforce).unwrap();
        world.apply_quickstart().unwrap();
        story(world);
    }
}

#[test]
fn an_unmodified_client_gets_what_a_stranger_does_not() {
    worlds(|mut world| {
        let mut billing = world.workload("billing", Evidence::billing()).unwrap();
        assert_eq!(billing.payments(CHARGE).send().unwrap().status, 401);
        billing.start_proxy().unwrap();
        let call = || billing.payments(CHARGE);
        for (call, version) in [
            (call().http1().v4(), "HTTP/1.1"),
            (call().http1().v6(), "HTTP/1.1"),
            (call().http2().v4(), "HTTP/2.0"),
            (call().http2().v6(), "HTTP/2.0"),
        ] {
            let answer = call.send().unwrap();
            assert_eq!(answer.status, 200, "{answer:?}");
            let told = answer.json().unwrap();
            assert_eq!(told["caller"], "spiffe://demo/ns/payments/sa/billing");
            assert_eq!(told["httpVersion"], version);
            assert_eq!(told["claims"]["team"], "payments");
            let left = told["tokenSecondsLeft"].as_u64().unwrap();
            assert!((1..=300).contains(&left), "{left}");
        }
        let seen = world.seen().unwrap();
        assert_eq!((seen.count, seen.authorised), (5, 4));
        assert!(seen.requests[1..].iter().all(|request| request.authorizations == 1));
    });
}

#[test]
fn what_no_rule_allows_is_refused_and_reaches_nobody() {
    worlds(|mut world| {
        let billing = world.billing().unwrap();
        let refused = billing.payments(CHARGE).http1().method("DELETE").send().unwrap();
        assert_eq!((refused.status, refused.code()), (403, "CS5001"), "{refused:?}");
        assert_eq!(refused.reason, "Denied by policy CS5001");
        assert_eq!(refused.header("content-type"), "application/problem+json");
        assert_eq!(refused.header("cache-control"), "no-store");
        assert!(refused.header("proxy-status").starts_with("countersign"), "{refused:?}");
        assert_eq!(refused.header("retry-after"), "");
        let problem = refused.json().unwrap();
        assert_eq!(problem["policies"][0]["name"], "payments/billing-charges");
        assert!(problem["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()), "{problem}");
        assert_eq!(problem["decision_id"], refused.header("countersign-decision"));

        let mut nightly = world.workload("nightly", Evidence::pod("batch", "nightly")).unwrap();
        nightly.start_proxy().unwrap();
        let stranger = nightly.payments(CHARGE).send().unwrap();
        assert_eq!((stranger.status, stranger.code()), (403, "CS5005"), "{stranger:?}");

        let mut forger = world.workload("forger", Evidence::billing().forged()).unwrap();
        forger.launch_proxy().unwrap();
        forger.proxy().wait_until_live().unwrap();
        forger.redirect().unwrap();
        let forged = forger.payments(CHARGE).send().unwrap();
        assert_eq!(forged.status, 0, "nothing is known, so not even a certificate is shown: {forged:?}");
        let plain = forger.curl("http://payments.demo.test/v1/charges/42").send().unwrap();
        assert_eq!(plain.status, 503, "{plain:?}");
        assert!(!forger.proxy().ready().unwrap());
        assert_eq!(world.seen().unwrap().count, 0);
        let refused = events(&world, "attested");
        assert!(refused.iter().any(|event| event["refused"] == "CS4002"), "{refused:?}");
    });
}

#[test]
fn a_block_acts_within_a_second_and_stands_until_it_is_lifted() {
    worlds(|mut world| {
        let billing = world.billing().unwrap();
        assert_eq!(billing.payments(CHARGE).send().unwrap().status, 200);
        let block = ["revoke", "workload/billing", "-n", "payments", "--reason", "test"];
        let revoked = world.countersign(&block).unwrap();
        assert!(revoked.success(), "{revoked:?}");
        let refused =
            |call: &tests::Answer| (call.status, call.code().to_owned()) == (403, "CS5007".to_owned());
        let call = |billing: &tests::Workload| billing.payments(CHARGE);
        let (after, _) = billing.eventually(Duration::from_secs(1), call, refused).unwrap();
        assert!(after < Duration::from_secs(1), "{after:?}");
        let again = world.countersign(&block).unwrap();
        assert!(again.success(), "a block that stands already is no error: {again:?}");
        assert!(refused(&billing.payments(CHARGE).send().unwrap()));
        let lifted = world.countersign(&["revoke", "workload/billing", "-n", "payments", "--lift"]).unwrap();
        assert!(lifted.success(), "{lifted:?}");
        billing.eventually(Duration::from_secs(1), call, |answer| answer.status == 200).unwrap();
    });
}

#[test]
fn deleting_the_policy_ends_it_within_a_second() {
    worlds(|mut world| {
        let billing = world.billing().unwrap();
        assert_eq!(billing.payments(CHARGE).send().unwrap().status, 200);
        let deleted =
            world.countersign(&["delete", "accesspolicy", "billing-charges", "-n", "payments"]).unwrap();
        assert!(deleted.success(), "{deleted:?}");
        let call = |billing: &tests::Workload| billing.payments(CHARGE);
        billing.eventually(Duration::from_secs(1), call, |answer| answer.status == 403).unwrap();
    });
}

#[test]
fn audit_has_every_call_and_the_chains_are_whole() {
    worlds(|mut world| {
        let billing = world.billing().unwrap();
        for number in 0..5 {
            let answer = billing.payments(&format!("/v1/charges/{number}")).send().unwrap();
            assert_eq!(answer.status, 200, "{answer:?}");
        }
        assert_eq!(billing.payments(CHARGE).method("DELETE").send().unwrap().status, 403);
        let grants: Vec<_> = world.seen().unwrap().requests.into_iter().map(|seen| seen.grant).collect();
        crate::eventually(Duration::from_secs(20), || {
            let intents = events(&world, "intent");
            (0..5).all(|number| intents.iter().any(|event| event["path"] == format!("/v1/charges/{number}")))
        });
        let intents = events(&world, "intent");
        for intent in &intents {
            assert_eq!(intent["caller"], "spiffe://demo/ns/payments/sa/billing");
            assert!(grants.contains(&intent["grant"].as_str().map(str::to_owned)), "{intent}");
        }
        let refusals = events(&world, "refusal");
        assert!(refusals.iter().any(|event| event["method"] == "DELETE"), "{refusals:?}");
        assert!(!events(&world, "administration").is_empty());
        let verified = world.countersign(&["audit", "verify"]).unwrap();
        assert!(verified.success(), "{verified:?}");
    });
}

#[test]
fn the_client_holds_no_credential_anywhere() {
    worlds(|mut world| {
        let billing = world.billing().unwrap();
        let mut kept = billing.steady("kept", "/v1/charges/{id}", &["--calls", "3"]).unwrap();
        kept.wait_for(200, 3, Duration::from_secs(10)).unwrap();
        let seen = world.seen().unwrap();
        let needles: Vec<&[u8]> =
            seen.requests.iter().filter_map(|request| Some(request.signature.as_ref()?.as_bytes())).collect();
        assert_eq!(needles.len(), 3);
        let pid = kept.process().pid().unwrap();
        assert_eq!(search::process(pid, &needles).unwrap(), Vec::<String>::new());
        assert_ne!(search::process(pid, &[b"payments.demo.test"]).unwrap(), Vec::<String>::new());
        for directory in ["/run/countersign/trust", "/run/countersign/logs", "/run/countersign/home", "/tmp"]
        {
            let found = search::files(&world.sandbox().outside(directory), &needles).unwrap();
            assert_eq!(found, Vec::<String>::new());
        }
        let look = billing.application("ls").args(["-A", PRIVATE]).output(Duration::from_secs(5)).unwrap();
        assert_eq!(look.text(), "", "the application sees something private");
    });
}

#[test]
fn it_works_with_the_token_of_a_ci_job_too() {
    let mut world = World::started(Egress::Enforce).unwrap();
    world.apply(CI).unwrap_or_else(|error| panic!("{error:#}"));
    let evidence = Evidence::job("acme/billing").with(&["--audience", "countersign-ci"]);
    let mut job = world.workload("job", evidence).unwrap();
    job.start_proxy().unwrap();
    let answer = job.payments(CHARGE).send().unwrap();
    assert_eq!(answer.status, 200, "{answer:?} {}", answer.text());
    assert_eq!(answer.json().unwrap()["caller"], "spiffe://demo/ci/acme");
    let posted = job.payments(CHARGE).method("POST").body("{}").send().unwrap();
    assert_eq!((posted.status, posted.code()), (403, "CS5001"), "{posted:?}");
}

const CI: &str = r#"
apiVersion: countersign.dev/v1alpha1
kind: TrustProvider
metadata: { name: demo-ci }
spec:
  oidc:
    issuer: https://issuer.demo.test:8443
    audience: countersign-ci
  caller:
    path: ci/{claim.repository_owner}
    namespace: payments
    instance: claim.run_id
---
apiVersion: countersign.dev/v1alpha1
kind: Workload
metadata: { name: deploy, namespace: payments }
spec:
  selector:
    claim.repository: acme/billing
  owner: team-payments
  purpose: deploys
  environment: demo
  destinations: [payments-api]
---
apiVersion: countersign.dev/v1alpha1
kind: AccessPolicy
metadata: { name: deploy-charges, namespace: payments }
spec:
  workload: deploy
  destination: payments-api
  credential: payments-token
  allow:
    - methods: [GET]
      paths: ["/v1/charges/**"]
  ttl: 5m
"#;

#[test]
fn a_decision_is_explained_before_and_after_it_was_made() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let billing = world.billing().unwrap();
    let ask = |method: &str| {
        let url = format!("https://{PAYMENTS}{CHARGE}");
        world.countersign(&["explain", "--workload", "payments/billing", method, &url]).unwrap()
    };
    let allowed = ask("GET");
    assert!(allowed.success() && allowed.text().starts_with("ALLOWED"), "{allowed:?}");
    assert!(allowed.text().contains("allowed by payments/billing-charges"), "{}", allowed.text());
    let denied = ask("DELETE");
    assert_eq!(denied.exit, 3, "{denied:?}");
    assert!(
        denied.text().contains("CS5001") && denied.text().contains("no   method DELETE"),
        "{}",
        denied.text()
    );

    let refused = billing.payments(CHARGE).method("DELETE").send().unwrap();
    let decision = refused.header("countersign-decision").to_owned();
    for which in [decision.as_str(), "last"] {
        eventually(Duration::from_secs(20), || {
            let explained = world.countersign(&["explain", which]).unwrap();
            explained.exit == 3 && explained.text().contains("CS5001")
        });
    }
    let made = billing.payments(CHARGE).send().unwrap();
    assert_eq!(made.status, 200);
    eventually(Duration::from_secs(20), || {
        let explained = world.countersign(&["explain", "last", "-o", "json"]).unwrap();
        explained.exit == 0 && explained.text().contains("answered 200")
    });
    assert_eq!(
        world.countersign(&["explain", "0000000000000"]).unwrap().exit,
        1,
        "there is no such decision"
    );
}

#[test]
fn a_grant_is_revoked_alone_and_the_next_call_gets_another() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let billing = world.billing().unwrap();
    assert_eq!(billing.payments(CHARGE).send().unwrap().status, 200);
    let grant =
        |world: &World| world.seen().unwrap().requests.last().and_then(|seen| seen.grant.clone()).unwrap();
    let first = grant(&world);
    let revoked = world.countersign(&["revoke", &format!("grant/{first}")]).unwrap();
    assert!(revoked.success() && revoked.text().contains("1 of 1 proxies confirmed"), "{revoked:?}");
    assert_eq!(billing.payments(CHARGE).send().unwrap().status, 200);
    assert_ne!(grant(&world), first);
    let again = world.countersign(&["revoke", &format!("grant/{first}")]).unwrap();
    assert!(again.success() && again.text().contains("already revoked"), "{again:?}");
}

#[test]
fn whoever_deletes_a_policy_in_observe_is_told_what_follows() {
    let world = World::started(Egress::Observe).unwrap();
    let quickstart = std::fs::read_to_string(tests::world::quickstart().join("quickstart.yaml")).unwrap();
    world.apply(&quickstart.replace("  egress: enforce\n", "")).unwrap();
    let referred = world.countersign(&["delete", "workload", "billing", "-n", "payments"]).unwrap();
    assert_eq!(referred.exit, 3, "{referred:?}");
    assert!(referred.stderr.contains("CS0110"), "{}", referred.stderr);
    let delete = ["delete", "accesspolicy", "billing-charges", "-n", "payments"];
    let deleted = world.countersign(&delete).unwrap();
    assert!(deleted.success() && deleted.stderr.contains("CS0132"), "{deleted:?}");
}

#[test]
fn the_issuer_is_the_configured_one_and_its_listener_serves_nothing_else() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let billing = world.billing().unwrap();
    assert_eq!(billing.payments(CHARGE).send().unwrap().status, 200);
    let get = |path: &str| {
        let curl = world.sandbox().command(Place::Service, As::Root, "curl");
        let url = format!("{}{path}", tests::world::CONTROL_ISSUER_URL);
        tests::Call::new(curl, &url).args(["--cacert", tests::world::SERVICE_ROOT]).send().unwrap()
    };
    let discovery = get("/.well-known/openid-configuration").json().unwrap();
    assert_eq!(discovery["issuer"], tests::world::CONTROL_ISSUER_URL);
    let keys = discovery["jwks_uri"].as_str().unwrap();
    let set = get(keys.strip_prefix(tests::world::CONTROL_ISSUER_URL).unwrap()).json().unwrap();
    let keys = set["keys"].as_array().unwrap();
    assert!(!keys.is_empty() && keys.iter().all(|key| key["kid"].is_string() && key["d"].is_null()), "{set}");
    for elsewhere in ["/", "/metrics", "/livez", "/countersign.v1.Administration/Get"] {
        assert_eq!(get(elsewhere).status, 404, "{elsewhere}");
    }
}

#[test]
fn administration_has_a_door_and_no_other_way_in() {
    let world = World::started(Egress::Enforce).unwrap();
    let private = format!("{PRIVATE}/control");
    world.sandbox().write("/run/countersign/wrong-token", "0".repeat(64)).unwrap();
    let by_token = |file: &str| {
        world
            .sandbox()
            .command(Place::Service, As::Root, format!("{PROGRAMS}/countersign"))
            .args([
                "--server",
                "https://control.demo.test:8440",
                "--ca-file",
                CONTROL_ROOT,
                "--token-file",
                file,
            ])
            .args(["get", "workloads", "-o", "name"])
            .output(Duration::from_secs(10))
            .unwrap()
    };
    let right = by_token(&format!("{private}/admin-token"));
    assert_eq!((right.exit, right.text().as_str()), (0, "workload/payments/billing\n"), "{right:?}");
    let wrong = by_token("/run/countersign/wrong-token");
    assert_eq!((wrong.exit, wrong.text().as_str()), (4, ""), "{wrong:?}");
    assert!(wrong.stderr.contains("CS0202"), "{wrong:?}");
    // The socket is 0600, in a directory of 0700.
    let stranger = world
        .sandbox()
        .command(Place::Service, As::Root, "setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .args([format!("{PROGRAMS}/countersign").as_str(), "get", "workloads"])
        .env("COUNTERSIGN_SOCKET", SOCKET)
        .output(Duration::from_secs(10))
        .unwrap();
    assert_eq!((stranger.exit, stranger.text().as_str()), (4, ""), "{stranger:?}");
}

#[test]
fn the_proxy_shows_its_memory_to_nobody_and_changes_its_log_when_told() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let mut billing = world.billing().unwrap();
    let pid = billing.proxy().process().pid().unwrap();
    // Not dumpable: what is in /proc belongs to root, whoever the process runs as (proc(5)).
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(format!("/proc/{pid}/mem")).unwrap());
    assert_eq!(owner, 0);
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert!(core.split_whitespace().filter(|word| *word == "0").count() == 2, "{core}");
    billing.proxy().process().signal(rustix::process::Signal::USR1);
    let log = billing.proxy().log().to_owned();
    let logged = || std::fs::read_to_string(&log).unwrap();
    eventually(Duration::from_secs(20), || logged().contains("log level changed by signal"));
    // Now each stage of a call is a span of its name, with the time that it took.
    assert_eq!(billing.payments(CHARGE).send().unwrap().status, 200);
    let spans = || -> std::collections::BTreeSet<String> {
        let lines = logged();
        let closed = lines
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .filter(|line| line["message"] == "close");
        closed.filter_map(|line| Some(line["span"]["name"].as_str()?.to_owned())).collect()
    };
    for stage in
        ["capture", "tls", "protocol", "identity", "policy", "credential", "rewrite", "upstream", "audit"]
    {
        eventually(Duration::from_secs(20), || spans().contains(stage));
    }
    billing.proxy().process().signal(rustix::process::Signal::USR2);
    let told = |log: &str| log.matches("log level changed by signal").count();
    eventually(Duration::from_secs(20), || told(&logged()) == 2);
    let before = logged().matches("\"DEBUG\"").count();
    assert_eq!(billing.payments(CHARGE).send().unwrap().status, 200);
    assert_eq!(logged().matches("\"DEBUG\"").count(), before, "as configured again");
}
