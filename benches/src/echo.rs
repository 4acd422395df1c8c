//! What gRPC alone can do on this machine: an echo service and its load.
//!
//! The server runs in a process of its own, like the systems it is compared
//! with.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::ValueEnum;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

use crate::clock;
use crate::load::{self, Window, Work};
use crate::measurement::{Failure, Measurement, Recorder};
use crate::process::Process;

/// The generated messages and services.
#[allow(
    missing_docs,
    clippy::all,
    unreachable_pub,
    unused_qualifications,
    let_underscore_drop
)]
mod wire {
    tonic::include_proto!("domicile.bench");
}

use wire::echo_service_client::EchoServiceClient;
use wire::echo_service_server::{EchoService, EchoServiceServer};
use wire::{EchoFrame, EchoMessage};

/// How long to wait for the server's process to listen.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// How many frames a framed stream keeps in flight: enough that neither end
/// waits for the other.
const FRAMES_IN_FLIGHT: usize = 4;

/// A way to send a message there and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Echo {
    /// A unary call for each message.
    Unary,
    /// One stream, pipelined, a frame for each message.
    Stream,
    /// One stream, pipelined, a quarter of the messages in each frame.
    Frames,
}

impl Echo {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Echo::Unary => "echo-unary",
            Echo::Stream => "echo-stream",
            Echo::Frames => "echo-frames",
        }
    }
}

/// Serves the echo service until the process is ended.
pub async fn serve(listen: SocketAddr) -> Result<()> {
    let listener = tokio::net::TcpListener::bind(listen).await?;
    let incoming = TcpListenerStream::new(listener).map(|accepted| {
        let socket = accepted?;
        socket.set_nodelay(true)?;
        Ok::<_, std::io::Error>(socket)
    });
    Server::builder()
        .add_service(EchoServiceServer::new(Echoing))
        .serve_with_incoming(incoming)
        .await?;
    Ok(())
}

/// The service itself.
struct Echoing;

#[tonic::async_trait]
impl EchoService for Echoing {
    async fn unary(&self, request: Request<EchoMessage>) -> Result<Response<EchoMessage>, Status> {
        Ok(Response::new(request.into_inner()))
    }

    type StreamStream = Pin<Box<dyn Stream<Item = Result<EchoFrame, Status>> + Send>>;

    async fn stream(
        &self,
        request: Request<Streaming<EchoFrame>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        Ok(Response::new(Box::pin(request.into_inner())))
    }
}

/// The server's process and where it listens.
pub struct EchoServer {
    /// The process, ended with this value.
    pub process: Process,
    /// Where it listens.
    address: SocketAddr,
}

impl EchoServer {
    /// Starts the server: `program` is the path of `domicile-bench`.
    pub async fn start(
        program: &std::path::Path,
        directory: &std::path::Path,
    ) -> Result<EchoServer> {
        let address: SocketAddr = crate::process::free_address()?;
        let arguments = [
            "echo-server".to_owned(),
            "--listen".to_owned(),
            address.to_string(),
        ];
        let process = Process::start("echo", program, arguments, directory)?;
        let deadline = clock::now() + START_TIMEOUT;
        while tokio::net::TcpStream::connect(address).await.is_err() {
            if clock::now() > deadline {
                bail!("the echo server does not listen: {}", process.log_tail());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(EchoServer { process, address })
    }

    /// Loads the server with messages of `bytes` bytes.
    pub async fn run(
        &self,
        echo: Echo,
        in_flight: usize,
        channels: usize,
        bytes: usize,
        window: Window,
    ) -> Result<Measurement> {
        let payload = Bytes::from(vec![0x5a; bytes]);
        match echo {
            Echo::Unary => {
                let mut clients = Vec::new();
                for _ in 0..channels.max(1) {
                    clients.push(self.connect().await?);
                }
                let workers = clients.iter().cycle().take(in_flight);
                let workers = workers.map(|client| UnaryWorker {
                    client: client.clone(),
                    payload: payload.clone(),
                });
                load::run(workers.collect(), window).await
            }
            Echo::Stream => {
                let client = self.connect().await?;
                pipeline(client, in_flight, 1, payload, window).await
            }
            Echo::Frames => {
                let client = self.connect().await?;
                let frames = FRAMES_IN_FLIGHT.min(in_flight);
                pipeline(client, frames, in_flight / frames, payload, window).await
            }
        }
    }

    async fn connect(&self) -> Result<EchoServiceClient<Channel>> {
        let channel = Endpoint::from_shared(format!("http://{}", self.address))?
            .tcp_nodelay(true)
            .connect()
            .await
            .context("connecting to the echo server")?;
        Ok(EchoServiceClient::new(channel))
    }
}

/// A worker that makes unary calls.
struct UnaryWorker {
    /// Its connection.
    client: EchoServiceClient<Channel>,
    /// What it sends.
    payload: Bytes,
}

impl Work for UnaryWorker {
    async fn once(&mut self, _random: u64) -> Result<(), Failure> {
        let message = EchoMessage {
            payload: self.payload.clone(),
        };
        let answer = self.client.unary(message).await?.into_inner();
        if answer.payload != self.payload {
            return Err(Failure::Wrong("another payload came back".to_owned()));
        }
        Ok(())
    }
}

/// Keeps `frames` frames of `messages` messages in flight on one stream. The
/// server answers in order, so the oldest frame is the answered one.
async fn pipeline(
    mut client: EchoServiceClient<Channel>,
    frames: usize,
    messages: usize,
    payload: Bytes,
    window: Window,
) -> Result<Measurement> {
    let (sender, receiver) = mpsc::channel(frames);
    let frame = EchoFrame {
        messages: vec![EchoMessage { payload }; messages],
    };
    let recorder = Recorder::default();
    let span = window.begin();
    let mut sent = VecDeque::with_capacity(frames);
    for _ in 0..frames {
        sent.push_back(clock::now());
        sender.send(frame.clone()).await?;
    }
    let mut answers = client
        .stream(ReceiverStream::new(receiver))
        .await?
        .into_inner();
    while let Some(started) = sent.pop_front() {
        let Some(answer) = answers.message().await? else {
            bail!("the echo server ended the stream");
        };
        let ended = clock::now();
        if ended >= span.from {
            if answer == frame {
                let within = ended < span.until;
                recorder.success(0, ended - started, messages as u64, within);
            } else {
                recorder.failure(0, Failure::Wrong("another frame came back".to_owned()));
            }
        }
        if ended < span.until {
            sent.push_back(ended);
            sender.send(frame.clone()).await?;
        }
    }
    Ok(recorder.measurement(window.duration))
}
