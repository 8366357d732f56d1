//! The one error of the pipe. It says whose fault it was, whether trying again is safe, and under which letters
//! everybody will find it in the access log.

use std::{borrow::Cow, fmt, time::Duration};

use http::StatusCode;

/// Who caused it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The caller: a malformed request, a connection given up.
    Downstream,
    /// The callee: refused, reset, silent.
    Upstream,
    /// This proxy: its configuration, its limits.
    Ours,
}

/// Whether the same request may be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Nothing was processed upstream: always safe.
    Safe,
    /// It may have been processed.
    Unsafe,
}

/// Response flags, in the letters of Envoy's access log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[expect(clippy::upper_case_acronyms, reason = "the letters that everybody greps for")]
pub enum Flag {
    /// Nothing to say.
    #[default]
    None,
    /// No route or service for this host.
    NR,
    /// No backend for this share of the traffic.
    NC,
    /// No healthy endpoint.
    UH,
    /// Connecting upstream failed.
    UF,
    /// The upstream connection ended too early.
    UC,
    /// Over a limit of the breaker.
    UO,
    /// The upstream was too slow.
    UT,
    /// What the upstream sent was not HTTP.
    UPE,
    /// The caller went away.
    DC,
    /// What the caller sent was not acceptable.
    DPE,
    /// The caller was too slow to send, or to take its answer.
    DT,
    /// The caller may not do this.
    AD,
    /// Who the caller says it is does not hold.
    AU,
    /// A plugin failed.
    WF,
    /// Over a rate limit.
    RL,
    /// Aborted on purpose.
    FI,
    /// Delayed on purpose; nothing else to say.
    DI,
}

impl Flag {
    /// As printed; `-` for nothing.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::NR => "NR",
            Self::NC => "NC",
            Self::UH => "UH",
            Self::UF => "UF",
            Self::UC => "UC",
            Self::UO => "UO",
            Self::UT => "UT",
            Self::UPE => "UPE",
            Self::DC => "DC",
            Self::DPE => "DPE",
            Self::DT => "DT",
            Self::AD => "AD",
            Self::AU => "AU",
            Self::WF => "WF",
            Self::RL => "RL",
            Self::FI => "FI",
            Self::DI => "DI",
        }
    }
}

/// Why an exchange did not get an answer from upstream.
#[derive(Clone, Debug)]
pub struct Error {
    /// What the caller is told, while it can still be told.
    pub status: StatusCode,
    /// For logs and metrics.
    pub flag: Flag,
    /// Who caused it.
    pub fault: Fault,
    /// Whether trying again is safe.
    pub retry: Retry,
    /// Whether it was sent on a connection that its peer had ended while it lay idle: nothing got to anybody.
    pub stale: bool,
    /// When to come back, where that is known.
    pub retry_after: Option<Duration>,
    /// The `grpc-status` of the answer, where it is not for the status to say.
    pub grpc: Option<u8>,
    /// For logs: what exactly. Never sent to the caller when it names addresses.
    pub detail: Cow<'static, str>,
}

impl Error {
    /// The caller's request cannot be served as it is.
    pub fn downstream(
        status: StatusCode,
        flag: Flag,
        detail: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            flag,
            fault: Fault::Downstream,
            retry: Retry::Unsafe,
            stale: false,
            retry_after: None,
            grpc: None,
            detail: detail.into(),
        }
    }

    /// The callee failed.
    pub fn upstream(
        status: StatusCode,
        flag: Flag,
        retry: Retry,
        detail: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            flag,
            fault: Fault::Upstream,
            retry,
            stale: false,
            retry_after: None,
            grpc: None,
            detail: detail.into(),
        }
    }

    /// This proxy refuses or cannot.
    pub fn ours(status: StatusCode, flag: Flag, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            flag,
            fault: Fault::Ours,
            retry: Retry::Unsafe,
            stale: false,
            retry_after: None,
            grpc: None,
            detail: detail.into(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.detail, self.flag.as_str())
    }
}

impl std::error::Error for Error {}
