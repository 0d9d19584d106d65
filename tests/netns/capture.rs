//! The redirect and a proxy that has never heard from a control plane: nothing passes, in either family.

use std::time::Duration;

use tests::world::CONTROL_ROOT;
use tests::{As, Evidence, Mode, Place, Sandbox, Workload, World};

const CHARGE: &str = "/v1/charges/42";

/// A service, and a workload whose control plane was never there.
fn worlds(story: impl Fn(World, Workload)) {
    for mode in [Mode::Root, Mode::Rootless] {
        let sandbox = if mode == Mode::Root { Sandbox::new() } else { Sandbox::rootless() };
        let mut world = World::within(sandbox.unwrap()).unwrap();
        world.start_issuer().unwrap();
        world.start_service().unwrap();
        world.sandbox().write(CONTROL_ROOT, world.certificates().root()).unwrap();
        let billing = world.workload("billing", Evidence::billing()).unwrap();
        story(world, billing);
    }
}

#[test]
fn without_any_policy_nothing_passes() {
    worlds(|world, mut billing| {
        assert_eq!(billing.payments(CHARGE).send().unwrap().status, 401);
        billing.launch_proxy().unwrap();
        billing.proxy().wait_until_live().unwrap();
        billing.redirect().unwrap();
        for family in ["-4", "-6"] {
            let tls = billing.payments(CHARGE).args([family]).send().unwrap();
            assert_eq!(tls.status, 0, "not even a certificate is shown: {tls:?}");
            // curl 7 would be a refused connection: it was caught.
            assert_ne!(tls.exit, 7, "{tls:?}");
            let url = "http://payments.demo.test/v1/charges/42";
            let plain = billing.curl(url).args([family]).send().unwrap();
            assert_eq!((plain.status, plain.code()), (503, "CS5003"), "{plain:?} {}", plain.text());
            assert_eq!(plain.header("retry-after"), "");
        }
        assert!(!billing.proxy().ready().unwrap());
        assert_eq!(world.seen().unwrap().count, 1);
    });
}

#[test]
fn without_ipv6_the_proxy_does_not_start() {
    let world = World::new().unwrap();
    let sandbox = world.sandbox();
    sandbox.write(CONTROL_ROOT, world.certificates().root()).unwrap();
    sandbox.write("/run/countersign/private/token", "none").unwrap();
    sandbox.add_client("v4only").unwrap();
    let place = Place::Client("v4only");
    sandbox.script(place, "ip -6 addr del ::1/128 dev lo").unwrap();
    let state = "/run/countersign/private/v4only";
    sandbox.private_directory(state, 0).unwrap();
    let program = format!("{}/countersign-proxy", tests::sandbox::PROGRAMS);
    let output = sandbox
        .command(place, As::Root, program)
        .args(["serve", "--control", "https://control.demo.test:8440", "--control-ca", CONTROL_ROOT])
        .args([
            "--state",
            state,
            "--spool",
            &format!("{state}/spool"),
            "--bundle",
            &format!("{state}/bundle.pem"),
        ])
        .args(["--evidence-token", "/run/countersign/private/token"])
        .output(Duration::from_secs(20))
        .unwrap();
    assert!(!output.success(), "{output:?}");
    assert!(output.stderr.contains("could not listen on ::1"), "{output:?}");
}

#[test]
fn a_dead_proxy_means_refused_and_a_removed_redirect_means_direct() {
    worlds(|world, mut billing| {
        billing.launch_proxy().unwrap();
        billing.proxy().wait_until_live().unwrap();
        let said = billing.redirect().unwrap();
        assert!(said.contains("not captured: loopback"), "the exclusions are printed: {said}");
        billing.proxy().kill9();
        for family in ["-4", "-6"] {
            let dead = billing.payments(CHARGE).args([family]).send().unwrap();
            assert_eq!((dead.status, dead.exit), (0, 7), "{dead:?}");
        }
        assert_eq!(world.seen().unwrap().count, 0);
        billing.redirect().unwrap();
        assert!(billing.capture(&["show"]).unwrap().contains("redirect"));
        billing.capture(&["remove"]).unwrap();
        billing.capture(&["remove"]).unwrap();
        assert_eq!(billing.payments(CHARGE).send().unwrap().status, 401);
    });
}
