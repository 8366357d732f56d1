//! One instance of a service that takes its time: so many requests at once, each for so long, and a queue before them
//! in which requests stay even when nobody waits for them any more, as in a server with a pool of threads. It can be
//! told to be slow or to fail, on the connection of whoever asks for [`Order`]s; crashed is what it is when it is ended.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// A request head longer than this ends its connection.
const LONGEST_HEAD: usize = 64 * 1024;
/// How much longer a slow one takes.
const SLOWER: u32 = 10;

/// What an instance can be told, and by which path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// From now on ten times as long.
    Slow,
    /// From now on 500 or 503 at once, in turn.
    Fail,
    /// How many requests there were.
    Count,
}

struct Instance {
    service: Duration,
    /// Free threads.
    free: Mutex<usize>,
    freed: Condvar,
    requests: AtomicU64,
    order: Mutex<Option<Order>>,
}

impl Order {
    const ALL: [Order; 3] = [Order::Slow, Order::Fail, Order::Count];

    fn path(self) -> &'static str {
        match self {
            Order::Slow => "/order/slow",
            Order::Fail => "/order/fail",
            Order::Count => "/order/count",
        }
    }

    /// Tells the instance at `address`, and returns how many requests it has had.
    pub fn tell(self, address: SocketAddr) -> Result<u64> {
        let mut stream = TcpStream::connect(address).context("reach an instance")?;
        let path = self.path();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: instance\r\nConnection: close\r\n\r\n")
            .context("tell an instance")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context("hear from an instance")?;
        let (_, count) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
        count.trim().parse().context("an answer that is no count")
    }
}

/// Serves at a port of its own until the process ends; prints the address.
pub fn serve(threads: usize, service: Duration) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").context("bind an instance")?;
    println!("{}", serde_json::to_string(&listener.local_addr()?)?);
    accept(&listener, threads, service)
}

fn accept(listener: &TcpListener, threads: usize, service: Duration) -> Result<()> {
    let instance = Arc::new(Instance {
        service,
        free: Mutex::new(threads),
        freed: Condvar::new(),
        requests: AtomicU64::new(0),
        order: Mutex::new(None),
    });
    loop {
        let (stream, _) = listener.accept().context("accept a connection")?;
        stream.set_nodelay(true).context("set TCP_NODELAY")?;
        let instance = instance.clone();
        thread::Builder::new()
            .stack_size(64 * 1024)
            .spawn(move || {
                // It ends when the caller does.
                let _ = instance.converse(stream);
            })
            .context("start a thread")?;
    }
}

impl Instance {
    fn converse(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let (mut unread, mut chunk) = (Vec::new(), [0; 4096]);
        loop {
            while let Some(end) = unread.windows(4).position(|four| four == b"\r\n\r\n") {
                let head: Vec<u8> = unread.drain(..end + 4).collect();
                let answer = self.answer(&head);
                stream.write_all(&answer)?;
                if Order::ALL.iter().any(|order| is_for(&head, order.path())) {
                    return Ok(());
                }
            }
            let count = stream.read(&mut chunk)?;
            if count == 0 || unread.len() > LONGEST_HEAD {
                return Ok(());
            }
            unread.extend_from_slice(chunk.get(..count).unwrap_or_default());
        }
    }

    fn answer(&self, head: &[u8]) -> Vec<u8> {
        if let Some(order) = Order::ALL.into_iter().find(|order| is_for(head, order.path())) {
            if order != Order::Count {
                *self.order.lock().unwrap_or_else(PoisonError::into_inner) = Some(order);
            }
            let count = self.requests.load(Ordering::Relaxed).to_string();
            return response("200 OK", count.as_bytes());
        }
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        match *self.order.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(Order::Fail) if number.is_multiple_of(2) => {
                return response("500 Internal Server Error", b"");
            }
            Some(Order::Fail) => return response("503 Service Unavailable", b""),
            Some(Order::Slow | Order::Count) | None => {}
        }
        self.work();
        response("200 OK", &super::body(super::DEFAULT_BODY))
    }

    fn work(&self) {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.freed.wait_while(free, |free| *free == 0);
        let mut free = waited.unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        drop(free);
        let slow = *self.order.lock().unwrap_or_else(PoisonError::into_inner) == Some(Order::Slow);
        thread::sleep(if slow { self.service * SLOWER } else { self.service });
        *self.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.freed.notify_one();
    }
}

fn is_for(head: &[u8], path: &str) -> bool {
    head.strip_prefix(b"GET ").is_some_and(|rest| rest.starts_with(path.as_bytes()))
}

fn response(status: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n", body.len()).into_bytes();
    for (header, value) in super::headers() {
        bytes.extend_from_slice(format!("{header}: {value}\r\n").as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(threads: usize) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || accept(&listener, threads, Duration::from_millis(1)));
        address
    }

    fn ask(stream: &mut TcpStream) -> String {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        stream.read_exact(&mut vec![0; length.parse().unwrap()]).unwrap();
        head.lines().next().unwrap().to_owned()
    }

    #[test]
    fn it_works_fails_when_told_and_counts() {
        let address = instance(1);
        let mut stream = TcpStream::connect(address).unwrap();
        assert_eq!(ask(&mut stream), "HTTP/1.1 200 OK");
        assert_eq!(Order::Slow.tell(address).unwrap(), 1);
        assert_eq!(ask(&mut stream), "HTTP/1.1 200 OK");
        assert_eq!(Order::Fail.tell(address).unwrap(), 2);
        assert_eq!(ask(&mut stream), "HTTP/1.1 500 Internal Server Error");
        assert_eq!(ask(&mut stream), "HTTP/1.1 503 Service Unavailable");
        assert_eq!(Order::Count.tell(address).unwrap(), 4);
    }
}
