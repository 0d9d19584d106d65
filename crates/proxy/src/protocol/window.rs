//! The connection window towards an application of HTTP/2: small until bodies come, large while memory is there.
//!
//! What an application sends and an upstream does not take lies in h2, up to this window. So a connection has the
//! protocol's own 64 KiB, which its reservation covers, and more only for as long as requests with bodies are open.

use std::cell::Cell;
use std::rc::Rc;

use crate::memory::{Budget, Reserved};

/// The protocol's window (RFC 9113 §6.9.2).
pub const SMALL: u32 = 65_535;

/// Larger windows, best first.
const LARGER: [u32; 3] = [4 << 20, 1 << 20, 256 << 10];

/// Requests with bodies that are open on a connection.
#[derive(Clone, Default)]
pub struct Uploads(Rc<Cell<usize>>);

/// One of them, until it is dropped.
pub struct Upload(Rc<Cell<usize>>);

impl Drop for Upload {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Uploads {
    /// A request with a body has come.
    pub fn begin(&self) -> Upload {
        self.0.set(self.0.get() + 1);
        Upload(self.0.clone())
    }
}

/// The window of one connection.
#[derive(Default)]
pub struct Window {
    reserved: Option<Reserved>,
}

impl Window {
    /// What the window should be from now on, if that is not what it is.
    pub fn change(&mut self, uploads: &Uploads, budget: &Budget) -> Option<u32> {
        match (uploads.0.get() > 0, &self.reserved) {
            (true, None) => {
                let (size, reserved) =
                    LARGER.iter().find_map(|size| Some((*size, budget.reserve_spare(*size as usize)?)))?;
                self.reserved = Some(reserved);
                Some(size)
            }
            (false, Some(_)) => {
                self.reserved = None;
                Some(SMALL)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::Registry;

    #[test]
    fn a_window_is_large_only_while_bodies_come_and_memory_is_there() {
        let budget = Budget::new(10 << 20, &Registry::new()).unwrap();
        let (mut first, mut second) = (Window::default(), Window::default());
        let uploads = Uploads::default();
        assert_eq!(first.change(&uploads, &budget), None);
        let upload = uploads.begin();
        assert_eq!(first.change(&uploads, &budget), Some(4 << 20));
        assert_eq!(first.change(&uploads, &budget), None);
        assert_eq!(second.change(&uploads, &budget), Some(1 << 20), "what is left");
        drop(upload);
        assert_eq!(first.change(&uploads, &budget), Some(SMALL));
        assert_eq!(second.change(&uploads, &budget), Some(SMALL));
        assert!(budget.reserve(10 << 20).is_some());
    }
}
