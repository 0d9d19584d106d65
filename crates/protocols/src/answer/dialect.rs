//! Which dialect a call's client can show, told from what the request is, never from its user agent.

use http::request::Parts;
use http::{Version, header};

use super::aws::{self, AwsForm};
use super::kubernetes::{self, KubernetesForm};
use crate::http::is_grpc;

/// The form of an answer of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// A problem document (RFC 9457): what everyone gets who asks for nothing else.
    Problem,
    /// An error of AWS, in the form of the service's protocol.
    Aws(AwsForm),
    /// An error of a Kubernetes API.
    Kubernetes(KubernetesForm),
    /// Text that git shows as `remote: …`.
    Git,
    /// A status of gRPC, in headers alone ("Trailers-Only").
    Grpc,
}

impl Dialect {
    /// The dialect of a request, as the application sent it.
    #[must_use]
    pub fn of(parts: &Parts) -> Self {
        if parts.version == Version::HTTP_2 && is_grpc(&parts.method, &parts.headers) {
            return Self::Grpc;
        }
        let host = host_of(parts);
        if let Some(form) = aws::form_of(parts, host) {
            return Self::Aws(form);
        }
        if is_git(parts) {
            return Self::Git;
        }
        kubernetes::form_of(parts, host).map_or(Self::Problem, Self::Kubernetes)
    }
}

/// git's smart HTTP (gitprotocol-http(5), "Smart Clients").
fn is_git(parts: &Parts) -> bool {
    let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
    path.ends_with("/git-upload-pack")
        || path.ends_with("/git-receive-pack")
        || (path.ends_with("/info/refs") && query.starts_with("service=git-"))
}

/// The host that a request names, without its port. Good for choosing words, not for judging.
fn host_of(parts: &Parts) -> Option<&str> {
    let named = parts.uri.host().or_else(|| parts.headers.get(header::HOST)?.to_str().ok())?;
    Some(named.as_bytes().iter().position(|byte| *byte == b':').map_or(named, |end| &named[..end]))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn of(line: &str, headers: &[(&str, &str)]) -> Dialect {
        let (method, target) = line.split_once(' ').unwrap();
        let builder = Request::builder().method(method).uri(target);
        let builder = headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, *value));
        Dialect::of(&builder.body(()).unwrap().into_parts().0)
    }

    fn signed(service: &str) -> String {
        format!(
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260101/eu-central-1/{service}/aws4_request, \
             SignedHeaders=host;x-amz-date, Signature=00"
        )
    }

    #[test]
    fn grpc_is_grpc_over_http2_only() {
        let of = |version| {
            let request = Request::post("/demo.Echo/Unary").version(version);
            let request = request.header("content-type", "application/grpc+proto").body(()).unwrap();
            Dialect::of(&request.into_parts().0)
        };
        assert_eq!(of(Version::HTTP_2), Dialect::Grpc);
        assert_eq!(of(Version::HTTP_11), Dialect::Problem);
    }

    #[test]
    fn aws_is_told_by_its_signature_and_its_form_by_the_call() {
        let form = ("content-type", "application/x-www-form-urlencoded; charset=utf-8");
        let sts = signed("sts");
        assert_eq!(of("POST /", &[("authorization", &sts), form]), Dialect::Aws(AwsForm::Query));
        let ec2 = signed("ec2");
        assert_eq!(of("POST /", &[("authorization", &ec2), form]), Dialect::Aws(AwsForm::Ec2));
        let s3 = signed("s3");
        assert_eq!(of("GET /bucket/key", &[("authorization", &s3)]), Dialect::Aws(AwsForm::S3));
        let lambda = signed("lambda");
        let rest = of("POST /2015-03-31/functions/f/invocations", &[("authorization", &lambda)]);
        assert_eq!(rest, Dialect::Aws(AwsForm::RestJson));
        let sqs = [
            ("authorization", signed("sqs")),
            ("x-amz-target", "AmazonSQS.SendMessage".to_owned()),
            ("content-type", "application/x-amz-json-1.0".to_owned()),
        ];
        let sqs: Vec<_> = sqs.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(of("POST /", &sqs), Dialect::Aws(AwsForm::Json10));
        let logs =
            [("x-amz-target", "Logs_20140328.PutLogEvents"), ("content-type", "application/x-amz-json-1.1")];
        assert_eq!(of("POST /", &logs), Dialect::Aws(AwsForm::Json11));
        let monitoring = signed("monitoring");
        let cbor = [("authorization", monitoring.as_str()), ("smithy-protocol", "rpc-v2-cbor")];
        assert_eq!(of("POST /service/X/operation/Y", &cbor), Dialect::Aws(AwsForm::Cbor));
        let cloudfront = signed("cloudfront");
        assert_eq!(
            of("GET /2020-05-31/distribution", &[("authorization", &cloudfront)]),
            Dialect::Aws(AwsForm::Query)
        );
    }

    #[test]
    fn aws_without_a_signature_is_told_by_a_presigned_query_or_its_name() {
        let presigned = "GET /b/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=A%2F20260101%2Fus-east-1%2Fs3%2Faws4_request";
        assert_eq!(of(presigned, &[]), Dialect::Aws(AwsForm::S3));
        let form = ("content-type", "application/x-www-form-urlencoded");
        let anonymous = of("POST /", &[("host", "sts.eu-central-1.amazonaws.com"), form]);
        assert_eq!(anonymous, Dialect::Aws(AwsForm::Query));
        let bucket = of("GET /key", &[("host", "public.s3.us-east-1.amazonaws.com")]);
        assert_eq!(bucket, Dialect::Aws(AwsForm::S3));
        assert_eq!(of("GET /key", &[("host", "notamazonaws.com")]), Dialect::Problem);
        assert_eq!(of("GET /key", &[("authorization", "Bearer AWS4-HMAC-SHA256 ")]), Dialect::Problem);
    }

    #[test]
    fn kubernetes_is_told_by_what_only_it_has() {
        for target in ["/api/v1/namespaces/default/pods?limit=500", "/apis/apps/v1/deployments"] {
            let status = Dialect::Kubernetes(KubernetesForm::Status);
            assert_eq!(of(&format!("GET {target}"), &[]), status, "{target}");
        }
        let text = Dialect::Kubernetes(KubernetesForm::Text);
        for target in ["/apis", "/apis/a.b.io", "/apis/batch/v1", "/api?timeout=32s", "/version?timeout=5s"] {
            assert_eq!(of(&format!("GET {target}"), &[]), text, "{target}");
        }
        let discovery =
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
        assert_eq!(of("GET /api?timeout=32s", &[("accept", discovery)]), text);
        assert_eq!(of("GET /version", &[("host", "kubernetes.default.svc:443")]), text);
        for target in
            ["/api/v1/users", "/api/v1", "/apis/mine/v1", "/version", "/apis/a.b/status", "/api?timeout=all"]
        {
            assert_eq!(of(&format!("GET {target}"), &[]), Dialect::Problem, "{target}");
        }
    }

    #[test]
    fn git_is_told_by_the_paths_of_its_protocol() {
        assert_eq!(of("GET /a/b.git/info/refs?service=git-upload-pack", &[]), Dialect::Git);
        assert_eq!(of("POST /a/b.git/git-receive-pack", &[]), Dialect::Git);
        assert_eq!(of("GET /a/b.git/info/refs", &[]), Dialect::Problem);
    }

    #[test]
    fn the_user_agent_changes_nothing() {
        assert_eq!(of("GET /", &[("user-agent", "kubectl/v1.32 git/2.47 aws-cli/2")]), Dialect::Problem);
    }
}
