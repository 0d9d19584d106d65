//! A session is a certificate: it is renewed before it ends, and nobody who calls meanwhile notices.

use std::time::Duration;

use tests::{Egress, World};

use crate::events;

const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_session_is_renewed_at_half_its_life_and_no_call_notices() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let change = |args: &mut Vec<String>| args.extend(["--svid-lifetime".to_owned(), "10".to_owned()]);
    world.control().restart_with(change).unwrap();
    world.control().wait_until_ready().unwrap();
    let billing = world.billing().unwrap();
    let mut steady = billing.steady("steady", "/v1/charges/{id}", &["--pause-ms", "20"]).unwrap();
    steady.wait_for(200, 5, SOON).unwrap();
    // Past the end of the first certificate, and of the second one's half.
    std::thread::sleep(Duration::from_secs(13));
    let calls = steady.calls();
    assert!(calls.iter().all(|made| made.status == 200), "{:?}", tests::workload::tally(&calls));
    let attested = events(&world, "attested");
    assert!((3..8).contains(&attested.len()), "{attested:?}");
    for event in &attested {
        assert!(
            event["refused"].is_null() && event["caller"] == "spiffe://demo/ns/payments/sa/billing",
            "{event}"
        );
    }
    // The same key each time: it is the instance's, not the certificate's.
    assert!(attested.windows(2).all(|pair| pair[0]["key"] == pair[1]["key"]), "{attested:?}");
    // The channel of this moment carries policy, and one proxy is not counted as two.
    let blocked = world.countersign(&["revoke", "workload/billing", "-n", "payments"]).unwrap();
    assert!(blocked.text().contains("1 of 1 proxies confirmed"), "{blocked:?}");
    let before = steady.calls().len();
    steady.wait_for(403, 3, SOON).unwrap();
    let passed = steady.calls()[before..].iter().take_while(|made| made.status == 200).count();
    assert!(passed < 50, "a second at most: {passed}");
}
