//! SIGKILL at any moment, under load: no event is lost, no request is without its credential, and a client that was
//! there before works again after.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rand::Rng as _;
use tests::workload::tally;
use tests::{Egress, World};

use crate::{events, eventually};

/// How often each program is killed.
const ROUNDS: usize = 3;
/// Time in which a client works again.
const BACK: Duration = Duration::from_secs(40);

#[derive(Clone, Copy, Debug)]
enum Victim {
    Proxy,
    Control,
    Issuer,
}

#[test]
fn whatever_is_killed_nothing_is_lost() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let mut billing = world.billing().unwrap();
    let args = ["--pause-ms", "3", "--connections", "4"];
    let mut http1 = billing.steady("h1", "/v1/charges/{id}", &args).unwrap();
    let mut http2 = billing.steady("h2", "/v1/charges/{id}", &[&args[..], &["--http2"]].concat()).unwrap();
    http1.wait_for(200, 20, BACK).unwrap();
    http2.wait_for(200, 20, BACK).unwrap();

    for round in 0..ROUNDS {
        for victim in [Victim::Proxy, Victim::Control, Victim::Issuer] {
            std::thread::sleep(Duration::from_millis(rand::rng().random_range(0..300)));
            if matches!(victim, Victim::Proxy) {
                // A new key would need newer evidence; the state directory keeps the old one, so none is minted.
                billing.proxy().kill9();
                std::thread::sleep(Duration::from_millis(rand::rng().random_range(0..200)));
                billing.proxy().restart().unwrap();
            } else {
                let daemon = if matches!(victim, Victim::Control) { world.control() } else { world.issuer() };
                daemon.kill9();
                std::thread::sleep(Duration::from_millis(rand::rng().random_range(0..500)));
                daemon.restart().unwrap();
            }
            // The same two processes as at the start, never restarted, get answers again.
            let since = Instant::now();
            for steady in [&mut http1, &mut http2] {
                let good = steady.calls().iter().filter(|made| made.status == 200).count();
                let again = steady.wait_for(200, good + 10, BACK);
                assert!(again.is_ok(), "round {round}, {victim:?}, {:?}: {again:?}", since.elapsed());
            }
        }
    }

    // All at once, as when a machine loses its containers.
    billing.proxy().kill9();
    world.control().kill9();
    world.issuer().kill9();
    std::thread::sleep(Duration::from_millis(rand::rng().random_range(0..500)));
    billing.proxy().restart().unwrap();
    std::thread::sleep(Duration::from_millis(rand::rng().random_range(0..500)));
    world.control().restart().unwrap();
    world.issuer().restart().unwrap();
    for steady in [&mut http1, &mut http2] {
        let good = steady.calls().iter().filter(|made| made.status == 200).count();
        steady.wait_for(200, good + 10, BACK).unwrap();
    }

    let calls = [http1.finish().unwrap(), http2.finish().unwrap()].concat();
    let seen = world.seen().unwrap();
    assert!(seen.count > 200, "there was load: {:?}", tally(&calls));
    let bare: Vec<_> = seen.requests.iter().filter(|seen| seen.caller.is_none()).collect();
    assert!(bare.is_empty(), "requests without their credential reached the service: {bare:?}");

    let reached: BTreeSet<String> = seen.requests.iter().map(|seen| seen.path.clone()).collect();
    let recorded = || -> BTreeSet<String> {
        events(&world, "intent").iter().filter_map(|event| Some(event["path"].as_str()?.to_owned())).collect()
    };
    eventually(Duration::from_secs(20), || recorded().is_superset(&reached));
    let intents = events(&world, "intent");
    let decisions = |events: &[serde_json::Value]| -> Vec<String> {
        events.iter().filter_map(|event| Some(event["decision"].as_str()?.to_owned())).collect()
    };
    let (mut begun, ended) = (decisions(&intents), decisions(&events(&world, "outcome")));
    let distinct = begun.iter().collect::<BTreeSet<_>>().len();
    assert_eq!(distinct, begun.len(), "each intent is stored once");
    begun.retain(|decision| !ended.contains(decision));
    assert!(begun.is_empty(), "every intent has an outcome, `unknown` if nothing better is known: {begun:?}");
    let verified = world.countersign(&["audit", "verify"]).unwrap();
    assert!(verified.success(), "{verified:?}");
}
