//! What a command's end means to a script. The codes do not depend on the form of the output.

use std::process::ExitCode;

use model::{Code, Failure};

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done, or yes.
    Done = 0,
    /// It failed.
    Error = 1,
    /// It was called in the wrong way.
    Usage = 2,
    /// The answer is no: denied, chain broken, documents wrong.
    No = 3,
    /// Not permitted.
    NotPermitted = 4,
    /// The control plane can't be reached.
    Unreachable = 5,
    /// What was waited for had not happened in time.
    WaitedInVain = 124,
    /// Ctrl-C.
    Interrupted = 130,
}

impl Exit {
    /// For the system.
    #[must_use]
    pub fn code(self) -> ExitCode {
        ExitCode::from(self as u8)
    }
}

/// A command that did not do what it was asked.
#[derive(Debug)]
pub struct Refusal {
    /// How it ends.
    pub exit: Exit,
    /// Which row of the table, if one.
    pub code: Option<Code>,
    /// What happened, outermost first.
    pub message: String,
    /// What to do; may be empty.
    pub help: String,
}

impl Refusal {
    /// One without a code.
    #[must_use]
    pub fn plain(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, code: None, message: message.into(), help: String::new() }
    }

    /// One of our table.
    #[must_use]
    pub fn coded(code: Code, message: impl Into<String>) -> Self {
        let exit = match code {
            Code::NotAuthorised => Exit::NotPermitted,
            Code::ControlPlaneAway | Code::ControlPlaneUnreachable => Exit::Unreachable,
            _ => Exit::Error,
        };
        Self { exit, code: Some(code), message: message.into(), help: code.entry().remedy.to_owned() }
    }
}

impl From<tonic::Status> for Refusal {
    fn from(status: tonic::Status) -> Self {
        let unknown =
            if status.code() == tonic::Code::Unavailable { Some(Code::ControlPlaneAway) } else { None };
        let failure: Failure = wire::status::to_failure(&status, Code::ControlPlaneAway);
        match (status.metadata().contains_key("countersign-code"), unknown) {
            (true, _) | (false, Some(_)) => Self::coded(failure.code, failure.detail),
            (false, None) => Self::plain(Exit::Error, failure.detail),
        }
    }
}

impl From<std::io::Error> for Refusal {
    fn from(error: std::io::Error) -> Self {
        Self::plain(Exit::Error, error.to_string())
    }
}
