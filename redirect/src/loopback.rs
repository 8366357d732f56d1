//! The address of loopback from which the sidecar connects to its application over IPv6. Of 127.0.0.0/8 every address
//! is there; of IPv6 only ::1 is, so that one more is given to the interface, by netlink (rtnetlink(7)): no tool is
//! needed for it.

use std::io;

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink::SocketAddrNetlink,
        recv, sendto, socket_with,
    },
};

use crate::plan::APPLICATION_SOURCE_V6;

/// The loopback interface of every network namespace.
const LO: u32 = 1;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const NLMSG_ERROR: u16 = 2;
/// Request, with an answer in any case.
const NLM_F_REQUEST_ACK: u16 = 0x1 | 0x4;
/// Made, but not if it is there.
const NLM_F_CREATE_EXCL: u16 = 0x400 | 0x200;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// Nobody else is asked whether they have it.
const IFA_F_NODAD: u8 = 0x02;
const AF_INET6: u8 = 10;

/// Gives loopback the address. Says whether it did not have it.
pub fn add() -> io::Result<bool> {
    match ask(RTM_NEWADDR, NLM_F_REQUEST_ACK | NLM_F_CREATE_EXCL) {
        Err(Errno::EXIST) => Ok(false),
        answer => Ok(answer.map(|()| true)?),
    }
}

/// Takes it away, if it is there.
pub fn remove() -> io::Result<()> {
    match ask(RTM_DELADDR, NLM_F_REQUEST_ACK) {
        // Not there; no IPv6 at all.
        Err(Errno::ADDRNOTAVAIL | Errno::OPNOTSUPP | Errno::AFNOSUPPORT) => Ok(()),
        answer => Ok(answer?),
    }
}

fn ask(kind: u16, flags: u16) -> Result<(), Errno> {
    let (family, way) = (AddressFamily::NETLINK, SocketType::RAW);
    let socket = socket_with(family, way, SocketFlags::CLOEXEC, None)?;
    let message = message(kind, flags);
    sendto(&socket, &message, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut answer = [0; 256];
    let (_, length) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
    verdict(answer.get(..length).unwrap_or(&answer))
}

/// A message as `struct nlmsghdr`, `struct ifaddrmsg` and two attributes have it, in the machine's byte order.
fn message(kind: u16, flags: u16) -> Vec<u8> {
    let mut body = vec![AF_INET6, 128, IFA_F_NODAD, 0];
    body.extend(LO.to_ne_bytes());
    for attribute in [IFA_LOCAL, IFA_ADDRESS] {
        body.extend(20u16.to_ne_bytes());
        body.extend(attribute.to_ne_bytes());
        body.extend(APPLICATION_SOURCE_V6.octets());
    }
    let length = u32::try_from(16 + body.len()).unwrap_or(u32::MAX);
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Sequence number and sender: there is one question only, and the kernel fills in the rest.
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn verdict(answer: &[u8]) -> Result<(), Errno> {
    let kind = answer.get(4..6).and_then(|bytes| Some(u16::from_ne_bytes(bytes.try_into().ok()?)));
    let code =
        answer.get(16..20).and_then(|bytes| Some(i32::from_ne_bytes(bytes.try_into().ok()?)));
    match (kind, code) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(Errno::from_raw_os_error(code.wrapping_neg())),
        _ => Err(Errno::BADMSG),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_says_how_long_it_is() {
        let message = message(RTM_NEWADDR, NLM_F_REQUEST_ACK);
        assert_eq!(message[..4], 64u32.to_ne_bytes());
        assert_eq!(message.len(), 64);
    }

    #[test]
    fn answers_are_read() {
        let answer = |kind: u16, code: i32| {
            [&[0; 4][..], &kind.to_ne_bytes(), &[0; 10], &code.to_ne_bytes()].concat()
        };
        assert_eq!(verdict(&answer(NLMSG_ERROR, 0)), Ok(()));
        assert_eq!(verdict(&answer(NLMSG_ERROR, -1)), Err(Errno::PERM));
        assert_eq!(verdict(&answer(3, 0)), Err(Errno::BADMSG));
        assert_eq!(verdict(&[]), Err(Errno::BADMSG));
    }
}
