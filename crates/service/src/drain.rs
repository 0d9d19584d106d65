//! Ending without breaking what is open.
//!
//! One [`Drain`] tells, many [`Watch`]es are told. `started` is when to finish up, `finished` is when to stop.

use tokio::sync::watch;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    Draining,
    Stopped,
}

/// Whoever ends the program holds this.
#[derive(Debug)]
pub struct Drain(watch::Sender<Phase>);

/// Whoever has something open holds one of these.
#[derive(Clone, Debug)]
pub struct Watch(watch::Receiver<Phase>);

/// A drain and its first watch.
#[must_use]
pub fn new() -> (Drain, Watch) {
    let (sender, receiver) = watch::channel(Phase::Serving);
    (Drain(sender), Watch(receiver))
}

impl Drain {
    /// Asks everybody to finish up.
    pub fn start(&self) {
        self.0.send_replace(Phase::Draining);
    }

    /// Tells everybody to stop.
    pub fn finish(&self) {
        self.0.send_replace(Phase::Stopped);
    }
}

impl Watch {
    /// Waits until it is time to finish up.
    pub async fn started(mut self) {
        // An error means that the drain itself is gone, and the program with it.
        let _ = self.0.wait_for(|phase| *phase != Phase::Serving).await;
    }

    /// Waits until it is time to stop.
    pub async fn finished(mut self) {
        let _ = self.0.wait_for(|phase| *phase == Phase::Stopped).await;
    }

    /// Whether it is time to finish up.
    #[must_use]
    pub fn has_started(&self) -> bool {
        *self.0.borrow() != Phase::Serving
    }
}
