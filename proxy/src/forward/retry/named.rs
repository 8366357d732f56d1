//! What a policy names: failures, statuses, gRPC statuses, as sets that take no memory of their own.

/// Which failures a policy is about. A set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditions(pub(super) u8);

/// Statuses: a set of 400 to 599.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Codes([u64; 4]);

/// gRPC statuses: a set of 1 to 16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GrpcCodes(u32);

impl Conditions {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// `connect-failure`: no connection could be made.
    pub const CONNECT_FAILURE: Self = Self(1);
    /// `refused-stream`: the upstream says that it did not process it, or it was never sent.
    pub const REFUSED_STREAM: Self = Self(2);
    /// `reset`: the connection ended before the response, or an attempt took too long.
    pub const RESET: Self = Self(4);
    /// `5xx`: any such answer, or none at all.
    pub const SERVER_ERROR: Self = Self(8);
    /// `gateway-error`: 502, 503, 504, or no answer in time.
    pub const GATEWAY_ERROR: Self = Self(16);
    /// `retriable-4xx`: 409, as in Envoy. (429 asks for less, not for more: name it in `codes` to have it tried again.)
    pub const RETRIABLE_4XX: Self = Self(32);

    /// What was certainly not processed; every policy names it.
    pub(super) const UNPROCESSED: Self = Self::CONNECT_FAILURE.and(Self::REFUSED_STREAM);

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether they have one in common.
    pub(super) const fn meet(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether there are some that are not in `other`.
    pub(super) const fn exceed(self, other: Self) -> bool {
        self.0 & !other.0 != 0
    }

    pub(super) fn of_status(status: u16) -> Self {
        match status {
            502..=504 => Self::GATEWAY_ERROR.and(Self::SERVER_ERROR),
            500..=599 => Self::SERVER_ERROR,
            409 => Self::RETRIABLE_4XX,
            _ => Self::NONE,
        }
    }
}

impl Codes {
    /// These; what is not a status of 400 to 599 is no failure and left out.
    pub fn of(codes: impl IntoIterator<Item = u16>) -> Self {
        let mut set = Self::default();
        for code in codes {
            if let Some((word, bit)) = Self::place(code) {
                set.0[word] |= bit;
            }
        }
        set
    }

    pub(super) fn has(&self, code: u16) -> bool {
        Self::place(code).is_some_and(|(word, bit)| self.0[word] & bit != 0)
    }

    fn place(code: u16) -> Option<(usize, u64)> {
        let at = usize::from(code.checked_sub(400).filter(|at| *at < 200)?);
        Some((at / 64, 1 << (at % 64)))
    }
}

impl GrpcCodes {
    /// These; 0 is no failure, and above 16 there are none: left out.
    pub fn of(codes: impl IntoIterator<Item = u8>) -> Self {
        let known = codes.into_iter().filter(|code| (1..=16).contains(code));
        Self(known.fold(0, |set, code| set | 1 << code))
    }

    pub(super) fn has(self, code: u8) -> bool {
        (1..=16).contains(&code) && self.0 & 1 << code != 0
    }
}
