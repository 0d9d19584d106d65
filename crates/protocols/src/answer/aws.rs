//! Errors of AWS, in the forms of its protocols (Smithy: awsQuery, ec2Query, restXml, awsJson1_0, awsJson1_1, restJson1,
//! rpcv2Cbor).
//!
//! The error's code is ours: an `AccessDenied` would be taken for one of AWS's own, and sends whoever reads it to IAM.

use std::fmt::Write as _;

use http::header::{self, HeaderName};
use http::request::Parts;
use serde_json::json;

use super::{Form, Said};

/// Which form of AWS's errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AwsForm {
    /// `<ErrorResponse>`: services of form-encoded calls, and of XML other than S3.
    Query,
    /// `<Response><Errors>`: EC2.
    Ec2,
    /// `<Error>`: S3.
    S3,
    /// JSON with `__type`, version 1.0 of the protocol.
    Json10,
    /// JSON with `__type`, version 1.1.
    Json11,
    /// JSON, with the code in `x-amzn-errortype`.
    RestJson,
    /// CBOR with `__type` (Smithy RPC v2).
    Cbor,
}

/// Signatures of version 4, and of its variant for several regions.
const ALGORITHMS: [&str; 2] = ["AWS4-HMAC-SHA256 ", "AWS4-ECDSA-P256-SHA256 "];

/// Names under which AWS serves; calls to them may be unsigned.
const SUFFIXES: [&str; 3] = [".amazonaws.com", ".amazonaws.com.cn", ".api.aws"];

/// The form of a call of AWS; `None` if it is none.
pub(super) fn form_of<'a>(parts: &'a Parts, host: Option<&'a str>) -> Option<AwsForm> {
    static TARGET: HeaderName = HeaderName::from_static("x-amz-target");
    let target = parts.headers.contains_key(&TARGET);
    let service = signed_for(parts).or_else(|| presigned_for(parts)).or_else(|| named_for(host?));
    if service.is_none() && !target {
        return None;
    }
    Some(form_by(parts, service.unwrap_or_default(), target))
}

fn form_by(parts: &Parts, service: &str, target: bool) -> AwsForm {
    let kind =
        parts.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let action =
        parts.uri.query().is_some_and(|query| query.split('&').any(|pair| pair.starts_with("Action=")));
    if parts.headers.get("smithy-protocol").is_some_and(|protocol| protocol == "rpc-v2-cbor") {
        AwsForm::Cbor
    } else if kind == "application/x-amz-json-1.0" {
        AwsForm::Json10
    } else if target || kind == "application/x-amz-json-1.1" {
        AwsForm::Json11
    } else if service == "s3" || service.starts_with("s3-") || service == "s3express" {
        AwsForm::S3
    } else if service == "ec2" {
        AwsForm::Ec2
    } else if kind == "application/x-www-form-urlencoded"
        || action
        || matches!(service, "cloudfront" | "route53")
    {
        AwsForm::Query
    } else {
        AwsForm::RestJson
    }
}

/// The service in the credential's scope: `KEY/DATE/REGION/SERVICE/aws4_request` (without the region for several).
fn signed_for(parts: &Parts) -> Option<&str> {
    let value = parts.headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let fields = ALGORITHMS.iter().find_map(|algorithm| value.strip_prefix(algorithm))?;
    let credential = fields.split(',').find_map(|field| field.trim().strip_prefix("Credential="));
    Some(credential.map_or("", |credential| credential.rsplit('/').nth(1).unwrap_or_default()))
}

/// The same in the query of a presigned URL, where the slashes are encoded.
fn presigned_for(parts: &Parts) -> Option<&str> {
    let query = parts.uri.query()?;
    let credential = query.split('&').find_map(|pair| pair.strip_prefix("X-Amz-Credential="))?;
    let scope = credential.strip_suffix("aws4_request")?;
    let scope = scope
        .strip_suffix('/')
        .or_else(|| scope.strip_suffix("%2F"))
        .or_else(|| scope.strip_suffix("%2f"))?;
    let encoded = scope.rfind("%2F").or_else(|| scope.rfind("%2f")).map(|at| at + 3);
    let plain = scope.rfind('/').map(|at| at + 1);
    scope.get(encoded.max(plain)?..)
}

/// The service as far as the host's name tells it: the first label, or S3, whose buckets come before it.
fn named_for(host: &str) -> Option<&str> {
    let service = SUFFIXES.iter().find_map(|suffix| host.strip_suffix(suffix))?;
    let is_s3 = |label: &&str| *label == "s3" || label.starts_with("s3-");
    service.split('.').find(is_s3).or_else(|| service.split('.').next())
}

pub(super) fn form(form: AwsForm, said: &Said<'_>) -> Form {
    let decision = said.decision.to_string();
    let (code, line) = (said.code.as_str(), said.line());
    let made = match form {
        AwsForm::Query => {
            let kind = if said.status().is_client_error() { "Sender" } else { "Receiver" };
            let mut xml = Xml::new();
            xml.nest("ErrorResponse", |xml| {
                xml.nest("Error", |xml| {
                    xml.text("Type", kind);
                    xml.text("Code", code);
                    xml.text("Message", &line);
                });
                xml.text("RequestId", &decision);
            });
            Form::new("text/xml", xml.0)
        }
        AwsForm::Ec2 => {
            let mut xml = Xml::new();
            xml.nest("Response", |xml| {
                xml.nest("Errors", |xml| {
                    xml.nest("Error", |xml| {
                        xml.text("Code", code);
                        xml.text("Message", &line);
                    });
                });
                xml.text("RequestID", &decision);
            });
            Form::new("text/xml", xml.0)
        }
        AwsForm::S3 => {
            let mut xml = Xml::new();
            xml.nest("Error", |xml| {
                xml.text("Code", code);
                xml.text("Message", &line);
                xml.text("RequestId", &decision);
            });
            Form::new("application/xml", xml.0)
        }
        AwsForm::Json10 => Form::new("application/x-amz-json-1.0", error_json(code, &line)),
        AwsForm::Json11 => Form::new("application/x-amz-json-1.1", error_json(code, &line)),
        AwsForm::RestJson => Form::new("application/json", error_json(code, &line)),
        AwsForm::Cbor => {
            let body = cbor_map(&[("__type", code), ("message", &line)]);
            Form::new("application/cbor", body).header("smithy-protocol", "rpc-v2-cbor")
        }
    };
    made.header("x-amzn-errortype", code)
        .header("x-amzn-requestid", &decision)
        .header("x-amz-request-id", decision)
}

fn error_json(code: &str, message: &str) -> String {
    json!({ "__type": code, "code": code, "message": message }).to_string()
}

/// A map of texts (RFC 8949 §3).
fn cbor_map(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    cbor_head(&mut bytes, 5, pairs.len());
    for (name, value) in pairs {
        for text in [name, value] {
            cbor_head(&mut bytes, 3, text.len());
            bytes.extend_from_slice(text.as_bytes());
        }
    }
    bytes
}

/// Major type and length, the length in four bytes where it does not fit into the first.
fn cbor_head(bytes: &mut Vec<u8>, major: u8, length: usize) {
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    match u8::try_from(length) {
        Ok(short) if short < 24 => bytes.push(major << 5 | short),
        _ => {
            bytes.push(major << 5 | 26);
            bytes.extend_from_slice(&length.to_be_bytes());
        }
    }
}

/// XML as it is written: names are ours, texts anybody's, so each text is escaped as it goes in.
struct Xml(String);

impl Xml {
    fn new() -> Self {
        Self("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n".to_owned())
    }

    fn nest(&mut self, name: &'static str, content: impl FnOnce(&mut Self)) {
        let _ = write!(self.0, "<{name}>");
        content(self);
        let _ = write!(self.0, "</{name}>");
    }

    fn text(&mut self, name: &'static str, text: &str) {
        self.nest(name, |xml| text.chars().for_each(|c| xml.character(c)));
    }

    /// XML 1.0 §2.2 and §2.4: three characters mean something, and most control characters can't be written at all.
    fn character(&mut self, c: char) {
        match c {
            '&' => self.0.push_str("&amp;"),
            '<' => self.0.push_str("&lt;"),
            '>' => self.0.push_str("&gt;"),
            '\u{0}'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => {
                self.0.push(char::REPLACEMENT_CHARACTER);
            }
            other => self.0.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use model::{Code, DecisionId};
    use proptest::prelude::*;

    use super::*;

    fn said(detail: &str) -> Said<'_> {
        Said { code: Code::NoPolicyAllows, detail, decision: DecisionId(7), nearest: &[] }
    }

    fn text(made: &Form) -> &str {
        std::str::from_utf8(&made.body).unwrap()
    }

    #[test]
    fn each_form_has_the_fields_that_its_sdks_read() {
        let query = form(AwsForm::Query, &said("no"));
        assert!(
            text(&query)
                .contains("<ErrorResponse><Error><Type>Sender</Type><Code>CS5001</Code><Message>CS5001 ")
        );
        assert!(text(&query).ends_with("</Error><RequestId>0000000000007</RequestId></ErrorResponse>"));
        let ec2 = form(AwsForm::Ec2, &said("no"));
        assert!(
            text(&ec2).contains("<Response><Errors><Error><Code>CS5001</Code><Message>"),
            "{}",
            text(&ec2)
        );
        let s3 = form(AwsForm::S3, &said("no"));
        assert!(text(&s3).contains("?>\n<Error><Code>CS5001</Code><Message>"), "{}", text(&s3));
        let json: serde_json::Value =
            serde_json::from_slice(&form(AwsForm::Json10, &said("no")).body).unwrap();
        assert_eq!(json["__type"], "CS5001");
    }

    /// The text between the tags of a message, read back.
    fn message(xml: &str) -> String {
        let (_, rest) = xml.split_once("<Message>").unwrap();
        let (escaped, _) = rest.split_once("</Message>").unwrap();
        assert!(!escaped.contains(['<', '>']));
        escaped.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    }

    fn as_xml_allows(c: char) -> char {
        let control = c < ' ' && !matches!(c, '\t' | '\n' | '\r');
        if control || matches!(c, '\u{fffe}' | '\u{ffff}') { char::REPLACEMENT_CHARACTER } else { c }
    }

    proptest! {
        #[test]
        fn a_text_is_a_text_whatever_is_in_it(detail in "\\PC*|[<>&\"'\u{0}-\u{1f}]*") {
            let said = said(&detail);
            let line: String = said.line();
            let writable: String = line.chars().map(as_xml_allows).collect();
            for xml in [AwsForm::Query, AwsForm::Ec2, AwsForm::S3] {
                prop_assert_eq!(message(text(&form(xml, &said))), writable.clone());
            }
            let json: serde_json::Value = serde_json::from_slice(&form(AwsForm::RestJson, &said).body).unwrap();
            prop_assert_eq!(json["message"].as_str(), Some(line.as_str()));
            let cbor = form(AwsForm::Cbor, &said).body;
            prop_assert!(cbor.ends_with(line.as_bytes()));
        }
    }

    #[test]
    fn cbor_lengths_are_written_as_the_standard_says() {
        assert_eq!(cbor_map(&[("a", "bc")]), [0xa1, 0x61, b'a', 0x62, b'b', b'c']);
        let long = "x".repeat(300);
        let bytes = cbor_map(&[("a", &long)]);
        assert_eq!(&bytes[..8], [0xa1, 0x61, b'a', 0x7a, 0, 0, 1, 44]);
    }
}
