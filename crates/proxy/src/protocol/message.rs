//! A request on its way through the stages.

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version};

use super::websocket::WebSocket;
use super::{Body, tunnel};

/// A request of the application. It is boxed once, where it is read, and handed on as that: an async function holds what
/// it is given twice, and there are many on the way.
pub struct Message {
    /// Its head.
    pub parts: Parts,
    /// Its body.
    pub body: Body,
}

impl Message {
    /// Of a request as HTTP libraries know it.
    pub fn new(request: Request<Body>) -> Box<Self> {
        let (parts, body) = request.into_parts();
        Box::new(Self { parts, body })
    }

    /// Takes the body, and leaves none.
    pub fn take_body(&mut self) -> Body {
        std::mem::replace(&mut self.body, Body::Empty)
    }

    /// Its fields.
    pub fn headers(&self) -> &HeaderMap {
        &self.parts.headers
    }

    /// The version of HTTP that its sender speaks.
    pub fn version(&self) -> Version {
        self.parts.version
    }

    /// Whether it asks for a WebSocket.
    pub fn is_websocket(&self) -> bool {
        self.parts.extensions.get::<WebSocket>().is_some()
    }

    /// Whether it asks for a tunnel, a WebSocket or another.
    pub fn asks_for_tunnel(&self) -> bool {
        self.is_websocket() || self.parts.extensions.get::<tunnel::Asked>().is_some()
    }
}

/// A head that was given away, should it have to be sent again. Its fields are in one piece of memory: a copy of a header
/// takes one for each of them.
pub struct Spare {
    method: Method,
    target: Uri,
    version: Version,
    /// Names and values, one behind the other.
    text: Vec<u8>,
    fields: Vec<Field>,
}

struct Field {
    name_ends: usize,
    value_ends: usize,
    is_sensitive: bool,
}

impl Spare {
    /// Of a head as it is. Its extensions are not kept.
    pub fn of(head: &Parts) -> Self {
        let length = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        let (mut text, mut fields) = (Vec::with_capacity(length), Vec::with_capacity(head.headers.len()));
        for (name, value) in &head.headers {
            text.extend_from_slice(name.as_str().as_bytes());
            let name_ends = text.len();
            text.extend_from_slice(value.as_bytes());
            fields.push(Field { name_ends, value_ends: text.len(), is_sensitive: value.is_sensitive() });
        }
        let (method, target) = (head.method.clone(), head.uri.clone());
        Self { method, target, version: head.version, text, fields }
    }

    /// The request again, without a body.
    pub fn restore(self) -> Box<Message> {
        let mut message = Message::new(Request::new(Body::Empty));
        message.parts.method = self.method;
        message.parts.uri = self.target;
        message.parts.version = self.version;
        message.parts.headers.reserve(self.fields.len());
        let (text, mut begins) = (Bytes::from(self.text), 0);
        for Field { name_ends, value_ends, is_sensitive } in self.fields {
            let name = HeaderName::from_bytes(&text[begins..name_ends]);
            let value = HeaderValue::from_maybe_shared(text.slice(name_ends..value_ends));
            begins = value_ends;
            // What came from a header is one.
            if let (Ok(name), Ok(mut value)) = (name, value) {
                value.set_sensitive(is_sensitive);
                message.parts.headers.append(name, value);
            }
        }
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spare_head_is_the_same_head() {
        let mut head = Request::put("https://a.example/b?c").version(Version::HTTP_2);
        for (name, value) in [("x-one", "1"), ("x-two", ""), ("x-one", "3"), ("accept", "\u{e4}")] {
            head = head.header(name, value);
        }
        let mut secret = HeaderValue::from_static("secret");
        secret.set_sensitive(true);
        let (head, ()) = head.header("authorization", secret).body(()).unwrap().into_parts();
        let again = Spare::of(&head).restore();
        assert_eq!((&again.parts.method, &again.parts.uri), (&head.method, &head.uri));
        assert_eq!((again.version(), again.headers()), (head.version, &head.headers));
        assert!(again.headers()["authorization"].is_sensitive() && !again.headers()["accept"].is_sensitive());
        assert!(matches!(again.body, Body::Empty));
    }
}
