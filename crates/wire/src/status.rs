//! Failures as gRPC statuses, with the code of our table in the metadata `countersign-code`.

use model::{Code, Failure};
use tonic::metadata::MetadataValue;
use tonic::{Code as Grpc, Status};

const METADATA_KEY: &str = "countersign-code";

/// The status that carries a failure. Its message is the sentence for people.
#[must_use]
pub fn from_failure(failure: &Failure) -> Status {
    let mut status = Status::new(grpc_code(failure.code), failure.detail.clone());
    status.metadata_mut().insert(METADATA_KEY, MetadataValue::from_static(failure.code.as_str()));
    status
}

/// The failure that a status carries; a status without a code of ours becomes `unknown`.
#[must_use]
pub fn to_failure(status: &Status, unknown: Code) -> Failure {
    let named =
        status.metadata().get(METADATA_KEY).and_then(|value| value.to_str().ok()).and_then(Code::parse);
    match named {
        Some(code) => Failure::new(code, status.message()),
        None => Failure::new(unknown, format!("{}: {}", status.code(), status.message())),
    }
}

fn grpc_code(code: Code) -> Grpc {
    match code {
        Code::NotAuthorised | Code::SessionEnded => Grpc::Unauthenticated,
        Code::NotFound => Grpc::NotFound,
        Code::PolicyMoved | Code::IssuerUnreachable | Code::ControlPlaneUnreachable | Code::NoCaller => {
            Grpc::Unavailable
        }
        Code::YamlSyntax
        | Code::UnknownField
        | Code::InvalidValue
        | Code::DanglingReference
        | Code::InvalidExpression
        | Code::StillReferenced => Grpc::InvalidArgument,
        _ => Grpc::PermissionDenied,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_survives_the_wire() {
        let failure = Failure::new(Code::EvidenceReplayed, "copied");
        let read = to_failure(&from_failure(&failure), Code::ControlPlaneUnreachable);
        assert_eq!((read.code, read.detail.as_str()), (Code::EvidenceReplayed, "copied"));
        let foreign = to_failure(&Status::unavailable("away"), Code::ControlPlaneUnreachable);
        assert_eq!(foreign.code, Code::ControlPlaneUnreachable);
    }
}
