//! A request on its way through the stages.

use http::request::Parts;
use http::{HeaderMap, Version};

use super::Body;
use super::websocket::WebSocket;

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
    pub fn new(request: http::Request<Body>) -> Box<Self> {
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
}
