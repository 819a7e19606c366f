//! Asking a registry over HTTP/1.1: a connection a question, bounded in time and length.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::task::JoinHandle;

use super::keeper::Fault;
use crate::gateway::connect::Connector;

/// The longest answer that is read, and the longest line of one that has no end; in bytes. Consul spends up to 1.5 kB on a node.
pub(super) const MAX_ANSWER: usize = 16 << 20;
/// For a connection.
const CONNECT: Duration = Duration::from_secs(2);

/// A 200, of which the body is still to come.
pub(super) struct Reply {
    pub headers: HeaderMap,
    body: Incoming,
    _line: Line,
}

/// A connection that ends with this.
struct Line(JoinHandle<()>);

impl Drop for Line {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Sends a request to `host:port` and waits for the head of its answer.
pub(super) async fn ask(
    connector: &Connector,
    address: &str,
    request: Request<Full<Bytes>>,
    patience: Duration,
) -> Result<Reply, Fault> {
    let connection = connector.connect(address, CONNECT).await.map_err(Fault::Connect)?;
    let asking = async {
        let (mut sender, driver) =
            http1::Builder::new().handshake(TokioIo::new(connection)).await.map_err(|_| Fault::Lost)?;
        // Its errors are those of the request.
        let line = Line(tokio::spawn(async move { drop(driver.await) }));
        let answer = sender.send_request(request).await.map_err(|error| match error.is_parse() {
            true => Fault::Malformed,
            false => Fault::Lost,
        })?;
        let (head, body) = answer.into_parts();
        match head.status {
            StatusCode::OK => Ok(Reply { headers: head.headers, body, _line: line }),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Fault::Refused),
            status => Err(Fault::Status(status.as_u16())),
        }
    };
    tokio::time::timeout(patience, asking).await.unwrap_or(Err(Fault::Late))
}

impl Reply {
    /// The next piece of the body; `None` is its end.
    pub async fn piece(&mut self) -> Result<Option<Bytes>, Fault> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    // Trailers are of no interest.
                    if let Ok(piece) = frame.into_data() {
                        return Ok(Some(piece));
                    }
                }
                Some(Err(_)) => return Err(Fault::Lost),
            }
        }
    }

    /// All of the body.
    pub async fn whole(&mut self, patience: Duration) -> Result<Bytes, Fault> {
        let reading = async {
            let mut whole = BytesMut::new();
            while let Some(piece) = self.piece().await? {
                if whole.len() + piece.len() > MAX_ANSWER {
                    return Err(Fault::TooLong);
                }
                whole.extend_from_slice(&piece);
            }
            Ok(whole.freeze())
        };
        tokio::time::timeout(patience, reading).await.unwrap_or(Err(Fault::Late))
    }
}
