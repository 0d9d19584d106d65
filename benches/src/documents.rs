//! The documents that the quickstart's are joined by: a slice of ten policies.

use std::fmt::Write as _;

/// Nine policies for the quickstart's workload: four for the destination that is called, with other paths, five for
/// destinations of their own.
pub(crate) fn nine_more_policies() -> String {
    let mut documents = String::from(
        "apiVersion: countersign.dev/v1alpha1\n\
         kind: Workload\n\
         metadata: { name: billing, namespace: payments }\n\
         spec:\n\
         \x20 selector: { kubernetes.serviceaccount: billing }\n\
         \x20 owner: team-payments\n\
         \x20 purpose: charges customers\n\
         \x20 environment: demo\n\
         \x20 destinations: [payments-api, api-0, api-1, api-2, api-3, api-4]\n\
         \x20 egress: enforce\n",
    );
    for number in 0..5 {
        let _ = write!(
            documents,
            "---\n\
             apiVersion: countersign.dev/v1alpha1\n\
             kind: Destination\n\
             metadata: {{ name: api-{number}, namespace: payments }}\n\
             spec: {{ hosts: [api-{number}.demo.test], ports: [443], sensitivity: low }}\n"
        );
        documents.push_str(&policy(
            &format!("api-{number}"),
            &format!("api-{number}"),
            &format!("/v1/things-{number}/**"),
        ));
    }
    for number in 0..4 {
        documents.push_str(&policy(
            &format!("more-{number}"),
            "payments-api",
            &format!("/v1/refunds-{number}/*/lines/**"),
        ));
    }
    documents
}

fn policy(name: &str, destination: &str, path: &str) -> String {
    format!(
        "---\n\
         apiVersion: countersign.dev/v1alpha1\n\
         kind: AccessPolicy\n\
         metadata: {{ name: {name}, namespace: payments }}\n\
         spec:\n\
         \x20 workload: billing\n\
         \x20 destination: {destination}\n\
         \x20 credential: payments-token\n\
         \x20 allow:\n\
         \x20   - methods: [GET, POST]\n\
         \x20     paths: [\"{path}\"]\n\
         \x20 when: context.attestation.age < duration(\"1h\")\n\
         \x20 ttl: 5m\n"
    )
}
