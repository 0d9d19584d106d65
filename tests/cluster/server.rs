//! The API server itself: that it answers as others do, and that the harness says what it should.

use serde_json::json;
use tests::Cluster;
use tests::cluster::{ISSUER, Identity};

use crate::Test;

pub(crate) const TESTS: &[Test] = crate::tests![
    tokens_are_made_reviewed_and_die_with_their_pod,
    discovery_and_keys_are_for_whoever_is_known,
    a_user_may_what_roles_say,
    a_service_of_loopback_has_an_address_of_loopback,
];

const AUDIENCE: &str = "https://countersign.example";

fn tokens_are_made_reviewed_and_die_with_their_pod(cluster: &Cluster) {
    let shop = cluster.namespace("tokens").unwrap();
    shop.service_account("till").unwrap();
    let pod = shop.pod("till-1", "till").unwrap();
    let token = shop.token_of(&pod, AUDIENCE).unwrap();
    let review = |audience: &str| {
        let spec = json!({ "token": token, "audiences": [audience] });
        let review = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec });
        cluster.create("/apis/authentication.k8s.io/v1/tokenreviews", &review).unwrap()["status"].clone()
    };
    let good = review(AUDIENCE);
    assert_eq!(good["authenticated"], true, "{good}");
    assert_eq!(good["audiences"], json!([AUDIENCE]));
    assert_eq!(good["user"]["username"], format!("system:serviceaccount:{}:till", shop.name()));
    assert_eq!(good["user"]["extra"]["authentication.kubernetes.io/pod-uid"], json!([pod.uid]));
    assert!(review("https://other.example").get("authenticated").is_none(), "absent means false");
    shop.remove_pod(&pod).unwrap();
    // The API server believes what it has looked up for some seconds more.
    cluster
        .wait_for("the end of the token", || {
            Ok(review(AUDIENCE).get("authenticated").is_none().then_some(()))
        })
        .unwrap();
}

fn discovery_and_keys_are_for_whoever_is_known(cluster: &Cluster) {
    let anonymous = cluster.request(Identity::Anonymous, "GET", "/.well-known/openid-configuration", None);
    assert_eq!(anonymous.unwrap().status, 403);
    let shop = cluster.namespace("keys").unwrap();
    let own = shop.token(Identity::Admin, "default", &json!({ "audiences": [ISSUER] })).unwrap();
    let discovery =
        cluster.request(Identity::Bearer(&own), "GET", "/.well-known/openid-configuration", None).unwrap();
    assert_eq!(discovery.json().unwrap()["issuer"], ISSUER);
    let keys = cluster.request(Identity::Bearer(&own), "GET", "/openid/v1/jwks", None).unwrap();
    assert_eq!(keys.header("content-type"), "application/jwk-set+json");
    assert_eq!(keys.json().unwrap()["keys"][0]["alg"], "RS256");
}

fn a_user_may_what_roles_say(cluster: &Cluster) {
    let shop = cluster.namespace("users").unwrap();
    let pods = shop.path("pods");
    let alice = || cluster.request(Identity::User("alice"), "GET", &pods, None).unwrap().status;
    assert_eq!(alice(), 403);
    let namespace = shop.name();
    let output = cluster.kubectl(&[
        "create",
        "rolebinding",
        "alice",
        "-n",
        namespace,
        "--clusterrole=view",
        "--user=alice",
    ]);
    assert!(output.as_ref().unwrap().success(), "{output:?}");
    cluster.wait_for("the role", || Ok((alice() == 200).then_some(()))).unwrap();
}

fn a_service_of_loopback_has_an_address_of_loopback(cluster: &Cluster) {
    let shop = cluster.namespace("services").unwrap();
    let service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "webhook" },
        "spec": { "ports": [{ "port": 8443 }] } });
    let created = cluster.create(&shop.path("services"), &service).unwrap();
    let address: std::net::Ipv4Addr = created["spec"]["clusterIP"].as_str().unwrap().parse().unwrap();
    std::net::TcpListener::bind((address, 0)).unwrap();
}
