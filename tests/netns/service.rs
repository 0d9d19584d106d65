//! The service and the issuer by themselves, before there is a proxy.

use tests::world::ISSUER_URL;
use tests::{As, Evidence, Mode, Place, Sandbox, World};

#[test]
fn a_stranger_gets_401_over_both_versions_and_both_families() {
    for mode in [Mode::Root, Mode::Rootless] {
        let sandbox = if mode == Mode::Root { Sandbox::new() } else { Sandbox::rootless() };
        let mut world = World::within(sandbox.unwrap()).unwrap();
        world.start_issuer().unwrap();
        world.start_service().unwrap();
        let stranger = world.workload("stranger", Evidence::billing()).unwrap();
        let call = || stranger.payments("/v1/charges/42");
        for (call, version) in [
            (call().http1().v4(), "HTTP/1.1"),
            (call().http1().v6(), "HTTP/1.1"),
            (call().http2().v4(), "HTTP/2"),
            (call().http2().v6(), "HTTP/2"),
        ] {
            let answer = call.send().unwrap();
            assert_eq!((answer.status, answer.version.as_str()), (401, version), "{answer:?}");
            assert_eq!(answer.header("www-authenticate"), "Bearer realm=\"payments\"");
        }
        let made_up = call().header("authorization: Bearer a.b.c").send().unwrap();
        assert_eq!(made_up.status, 401);
        assert!(made_up.header("www-authenticate").contains("invalid_token"), "{made_up:?}");
        let seen = world.seen().unwrap();
        assert_eq!((seen.count, seen.authorised), (5, 0));
    }
}

#[test]
fn the_issuer_publishes_the_same_key_after_it_was_killed() {
    let mut world = World::new().unwrap();
    world.start_issuer().unwrap();
    let keys = |world: &World| {
        let curl = world.sandbox().command(Place::Service, As::Root, "curl");
        let curl = curl.args(["--cacert", tests::world::SERVICE_ROOT]);
        tests::Call::new(curl, "https://issuer.demo.test:8443/openid/v1/jwks").send().unwrap().json().unwrap()
    };
    let before = keys(&world);
    assert_eq!(before["keys"][0]["alg"], "ES256");
    world.issuer().kill9();
    world.issuer().restart().unwrap();
    world.issuer().wait_until_ready().unwrap();
    assert_eq!(before, keys(&world));
}

#[test]
fn only_a_fresh_token_for_this_audience_by_a_known_key_is_taken() {
    let mut world = World::new().unwrap();
    world.start_issuer().unwrap();
    world.start_service().unwrap();
    // The issuer of evidence in the control plane's place: what is tried here is the service's verifier.
    let trusting_the_issuer = |args: &mut Vec<String>| {
        let url = args.iter().position(|arg| arg == "--issuer").unwrap() + 1;
        args[url] = ISSUER_URL.to_owned();
    };
    world.service().restart_with(trusting_the_issuer).unwrap();
    world.service().wait_until_ready().unwrap();
    let here = ["--audience", "https://payments.demo.test"];
    let cases = [
        ("fresh", 200, Evidence::billing().with(&here)),
        ("almost-old", 200, Evidence::billing().with(&here).with(&["--issued-ago", "240"])),
        ("old", 401, Evidence::billing().with(&here).with(&["--issued-ago", "320"])),
        ("expired", 401, Evidence::billing().with(&here).with(&["--ttl", "-60"])),
        ("elsewhere", 401, Evidence::billing().with(&["--audience", "https://other.demo.test"])),
        ("forged", 401, Evidence::billing().with(&here).forged()),
    ];
    let mut accepted = 0;
    for (name, status, evidence) in cases {
        let bearer = world.workload(name, evidence).unwrap();
        let header = format!("authorization: Bearer {}", bearer.token().unwrap());
        let answer = bearer.payments("/v1/charges/42").header(&header).send().unwrap();
        assert_eq!(answer.status, status, "{name}: {answer:?} {}", answer.text());
        if status == 200 {
            accepted += 1;
            assert_eq!(answer.json().unwrap()["caller"], "system:serviceaccount:payments:billing");
            let twice = bearer.payments("/v1/charges/42").header(&header).header(&header).send().unwrap();
            assert_eq!(twice.status, 401, "two fields are not one: {twice:?}");
        }
    }
    assert_eq!(world.seen().unwrap().authorised, accepted);
}
