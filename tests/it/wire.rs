//! What a release said on the wire keeps its meaning (golden/wire/README.md): numbers, types and names.

use std::path::Path;

use prost_reflect::{FieldDescriptor, MethodDescriptor};
use tests::recorded::{Release, definition};

const CONVERSATIONS: [&str; 5] = ["attest-refused", "attest", "watch", "issue", "report"];

#[test]
fn numbers_types_and_names_of_a_release_are_for_ever() {
    let proto = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../crates/wire/proto/countersign/v1/control_plane.proto")
        .canonicalize()
        .unwrap();
    let today = definition(&proto).unwrap();
    for release in Release::all().unwrap() {
        let version = &release.version;
        for message in release.pool().all_messages() {
            let name = message.full_name();
            let now = today.get_message_by_name(name).unwrap_or_else(|| panic!("{version}: {name} is gone"));
            for field in message.fields() {
                let place = format!("{version}: {name}.{} = {}", field.name(), field.number());
                let kept = now.get_field(field.number()).unwrap_or_else(|| panic!("{place} is gone"));
                assert_eq!(shape(&kept), shape(&field), "{place} is another field now");
            }
        }
        for service in release.pool().services() {
            let now = today.get_service_by_name(service.full_name());
            let now = now.unwrap_or_else(|| panic!("{version}: {} is gone", service.full_name()));
            for method in service.methods() {
                let kept = now.methods().find(|known| known.name() == method.name());
                let kept = kept.unwrap_or_else(|| panic!("{version}: {} is gone", method.full_name()));
                assert_eq!(
                    call(&kept),
                    call(&method),
                    "{version}: {} is another call now",
                    method.full_name()
                );
            }
        }
    }
}

#[test]
fn each_kept_message_is_what_the_text_beside_it_says() {
    for release in Release::all().unwrap() {
        for name in CONVERSATIONS {
            let said = release.conversation(name).unwrap();
            assert!(!said.requests.is_empty() && said.headers.iter().any(|(name, _)| name == "content-type"));
            for (who, messages) in [("request", &said.requests), ("answer", &said.answers)] {
                for (number, bytes) in (1..).zip(messages) {
                    let file = format!("golden/wire/{}/{name}.{who}-{number}.txt", release.version);
                    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join(&file);
                    let message = release.message(&said.path, who, bytes).unwrap();
                    assert_eq!(std::fs::read_to_string(text).unwrap(), message.text(), "{file}");
                }
            }
        }
    }
}

/// What of a field must not change.
fn shape(field: &FieldDescriptor) -> String {
    let one_of = field.containing_oneof().map(|one_of| one_of.name().to_owned());
    let (name, kind, cardinality) = (field.name(), field.kind(), field.cardinality());
    format!("{name}: {cardinality:?} {kind:?} presence={} {one_of:?}", field.supports_presence())
}

/// What of a method must not change.
fn call(method: &MethodDescriptor) -> String {
    let stream = |is: bool| if is { "stream " } else { "" };
    let (asked, answered) = (stream(method.is_client_streaming()), stream(method.is_server_streaming()));
    format!("({asked}{}) -> {answered}{}", method.input().full_name(), method.output().full_name())
}
