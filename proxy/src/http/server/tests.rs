use std::sync::atomic::AtomicUsize;

use tokio::io::{DuplexStream, ReadBuf};

use super::*;

/// Tells how much room the last read had: a parked connection asks for one byte.
struct Observed(DuplexStream, Arc<AtomicUsize>);

impl AsyncRead for Observed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        self.1.store(buffer.remaining(), Ordering::Relaxed);
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Observed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// A caller, and what it talks to.
struct Caller {
    stream: DuplexStream,
    room: Arc<AtomicUsize>,
    drain: watch::Sender<bool>,
}

impl Caller {
    /// Serves `room` bytes at a time with a body of `answer`, which is followed by the path.
    fn serve(buffer: usize, answer: &'static str) -> (Self, impl Future<Output = Ended>) {
        let (stream, near) = tokio::io::duplex(buffer);
        let room = Arc::new(AtomicUsize::default());
        let (drain, draining) = watch::channel(false);
        let served = serve_http1(
            Observed(near, room.clone()),
            Limits::default(),
            draining,
            move |request: Request<Incoming>| {
                let text = format!("{answer}{}", request.uri().path());
                Box::pin(async move { Ok(Response::new(Body::Full(text.into()))) }) as Answer
            },
        );
        (Self { stream, room, drain }, served)
    }

    async fn say(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// Reads until the response ends with `end`.
    async fn hear(&mut self, end: &str) -> String {
        let mut heard = Vec::new();
        while !heard.ends_with(end.as_bytes()) {
            assert!(self.stream.read_buf(&mut heard).await.unwrap() > 0, "the connection ended");
        }
        String::from_utf8(heard).unwrap()
    }

    fn is_parked(&self) -> bool {
        self.room.load(Ordering::Relaxed) == 1
    }
}

async fn for_seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_parked_and_goes_on() {
    let (mut caller, served) = Caller::serve(1024, "");
    let talk = async {
        for_seconds(20).await;
        assert!(caller.is_parked(), "it has not had a request");
        for round in 0..3 {
            caller.say(&format!("GET /{round} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
            caller.hear(&format!("\r\n\r\n/{round}")).await;
            assert!(!caller.is_parked());
            for_seconds(20).await;
            assert!(caller.is_parked(), "round {round}");
        }
        // Byte by byte, with time to be parked again after each.
        for byte in "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n".chars() {
            caller.say(&byte.to_string()).await;
            for_seconds(1).await;
        }
        caller.hear("\r\n\r\n/slow").await;
        caller
            .say("GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\nGET /c")
            .await;
        caller.hear("\r\n\r\n/b").await;
        for_seconds(20).await;
        caller.say(" HTTP/1.1\r\nHost: a\r\n\r\n").await;
        caller.hear("\r\n\r\n/c").await;
        drop(caller);
    };
    assert_eq!(tokio::join!(served, talk).0, Ended::Clean);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_parked_that_is_under_way() {
    let long: &str = Box::leak("x".repeat(4096).into_boxed_str());
    let (mut caller, served) = Caller::serve(64, long);
    let talk = async {
        // Its answer does not fit into what the caller has room for.
        caller.say("GET /1 HTTP/1.1\r\nHost: a\r\n\r\n").await;
        for_seconds(40).await;
        caller.hear("x/1").await;
        for_seconds(40).await;
        assert!(caller.is_parked());
        // Its request is not over, although it was answered.
        caller.say("POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 40\r\n\r\n").await;
        caller.hear("x/2").await;
        for_seconds(40).await;
        assert!(!caller.is_parked());
        drop(caller);
    };
    tokio::join!(served, talk);
}

#[tokio::test(start_paused = true)]
async fn a_parked_connection_ends_in_time() {
    let (mut caller, served) = Caller::serve(1024, "");
    let talk = async {
        caller.say("GET /1 HTTP/1.1\r\nHost: a\r\n\r\n").await;
        caller.hear("/1").await;
        caller.stream.read_to_end(&mut Vec::new()).await.unwrap();
    };
    assert_eq!(tokio::join!(served, talk).0, Ended::TimedOut);

    let (mut caller, served) = Caller::serve(1024, "");
    let talk = async {
        caller.say("GET /1 HTTP/1.1\r\nHost: a\r\n\r\n").await;
        caller.hear("/1").await;
        for_seconds(20).await;
        assert!(caller.is_parked());
        caller.drain.send_replace(true);
        caller.stream.read_to_end(&mut Vec::new()).await.unwrap();
    };
    assert_eq!(tokio::join!(served, talk).0, Ended::Clean);
}

/// Whoever sends on an idle connection while the proxy begins to drain is answered, and told that it was the last time.
#[tokio::test(start_paused = true)]
async fn what_is_idle_when_draining_begins_may_be_used_once_more() {
    for parked in [false, true] {
        let (mut caller, served) = Caller::serve(1024, "");
        let talk = async {
            caller.say("GET /1 HTTP/1.1\r\nHost: a\r\n\r\n").await;
            caller.hear("/1").await;
            for_seconds(if parked { 20 } else { 0 }).await;
            assert_eq!(caller.is_parked(), parked);
            caller.drain.send_replace(true);
            for_seconds(1).await;
            caller.say("GET /2 HTTP/1.1\r\nHost: a\r\n\r\n").await;
            assert!(caller.hear("/2").await.contains("connection: close\r\n"));
            let told = tokio::time::Instant::now();
            caller.stream.read_to_end(&mut Vec::new()).await.unwrap();
            assert_eq!(told.elapsed(), Duration::ZERO, "it ends with that answer");
        };
        assert_eq!(tokio::join!(served, talk).0, Ended::Clean);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_began_before_draining_is_answered() {
    let (mut caller, served) = Caller::serve(1024, "");
    let talk = async {
        caller.say("GET /1 HTTP/1.1\r\nHost: a\r\n").await;
        caller.drain.send_replace(true);
        for_seconds(1).await;
        caller.say("\r\n").await;
        assert!(caller.hear("/1").await.contains("connection: close\r\n"));
        caller.stream.read_to_end(&mut Vec::new()).await.unwrap();
    };
    assert_eq!(tokio::join!(served, talk).0, Ended::Clean);
}

/// Half a head keeps neither the drain nor the worker busy: its time ends as it would have.
#[tokio::test(start_paused = true)]
async fn a_head_that_stands_still_ends_while_draining() {
    let (mut caller, served) = Caller::serve(1024, "");
    let talk = async {
        caller.say("GET /1 HT").await;
        for_seconds(1).await;
        caller.drain.send_replace(true);
        caller.stream.read_to_end(&mut Vec::new()).await.unwrap();
    };
    let begun = tokio::time::Instant::now();
    assert_eq!(tokio::join!(served, talk).0, Ended::TimedOut);
    assert!(begun.elapsed() < Limits::default().head_timeout + Duration::from_secs(2));
}
