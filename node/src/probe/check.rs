//! One attempt of a probe, and the HTTP side of lifecycle hooks.

use std::{net::IpAddr, sync::LazyLock, time::Duration};

use bytes::{Buf, Bytes};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::{
    api::core::v1::{Container, GRPCAction, HTTPGetAction},
    apimachinery::pkg::util::intstr::IntOrString,
};
use tokio::net::TcpStream;

use super::Target;
use crate::{backend::ContainerRuntime, runtime::ContainerId};

/// How much of an answer or of a command's output an event shows.
const SHOWN: usize = 512;

/// No redirects: a probe must not be led away from its pod. Certificates are not checked: a pod has none that the node
/// could know.
static HTTP: LazyLock<Option<reqwest::Client>> = LazyLock::new(|| {
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .tls_danger_accept_invalid_certs(true)
        .pool_max_idle_per_host(0)
        .user_agent("kube-probe/1.35")
        .build()
        .inspect_err(|error| tracing::error!(%error, "HTTP probes are not possible"))
        .ok()
});

/// Probes once; the error is what the event says.
pub async fn attempt(target: &Target, runtime: &dyn ContainerRuntime, timeout: Duration) -> Result<(), String> {
    let probe = &target.probe;
    if let Some(exec) = &probe.exec {
        let command = exec.command.clone().unwrap_or_default();
        return command_succeeds(runtime, &target.id, &command, timeout).await;
    }
    let work = async {
        if let Some(get) = &probe.http_get {
            return http_get(get, &target.container, target.ip, timeout).await;
        }
        if let Some(tcp) = &probe.tcp_socket {
            let port = port(&tcp.port, &target.container)?;
            let host = host(tcp.host.as_deref(), target.ip)?;
            let connected = TcpStream::connect((host.trim_matches(['[', ']']), port)).await;
            return connected.map(drop).map_err(|error| format!("dial tcp {host}:{port}: {error}"));
        }
        if let Some(grpc) = &probe.grpc {
            return grpc_check(grpc, target.ip).await;
        }
        Err("the probe names no check that this node knows".to_owned())
    };
    tokio::time::timeout(timeout, work).await.unwrap_or_else(|_| Err(format!("timeout: no answer in {timeout:?}")))
}

/// Runs a command in a container; anything but exit code 0 is an error.
pub async fn command_succeeds(
    runtime: &dyn ContainerRuntime,
    id: &ContainerId,
    command: &[String],
    timeout: Duration,
) -> Result<(), String> {
    let output = runtime.exec_sync(id, command, timeout).await.map_err(|error| error.to_string())?;
    if output.status.code == 0 {
        return Ok(());
    }
    let all: Vec<u8> = output.stdout.into_iter().chain(output.stderr).take(SHOWN).collect();
    let text = String::from_utf8_lossy(&all).trim().to_owned();
    Err(if text.is_empty() { format!("command exited with {}", output.status.code) } else { text })
}

/// A port given by number or by the name of one of the container's ports.
pub fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|p| p.name.as_deref() == Some(name))
            .map(|p| p.container_port)
            .or_else(|| name.parse().ok()),
    };
    number.and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0).ok_or_else(|| format!("no port {port:?}"))
}

fn host(wanted: Option<&str>, ip: Option<IpAddr>) -> Result<String, String> {
    if let Some(host) = wanted.filter(|h| !h.is_empty()) {
        return Ok(host.to_owned());
    }
    match ip {
        Some(IpAddr::V4(ip)) => Ok(ip.to_string()),
        Some(IpAddr::V6(ip)) => Ok(format!("[{ip}]")),
        None => Err("the pod has no address yet".to_owned()),
    }
}

pub async fn http_get(
    get: &HTTPGetAction,
    container: &Container,
    ip: Option<IpAddr>,
    timeout: Duration,
) -> Result<(), String> {
    let client = HTTP.as_ref().ok_or("HTTP probes are not possible on this node")?;
    let scheme = get.scheme.as_deref().unwrap_or("HTTP").to_lowercase();
    let path = get.path.as_deref().unwrap_or("/");
    let slash = if path.starts_with('/') { "" } else { "/" };
    let url = format!("{scheme}://{}:{}{slash}{path}", host(get.host.as_deref(), ip)?, port(&get.port, container)?);
    let mut request = client.get(&url).timeout(timeout);
    for header in get.http_headers.iter().flatten() {
        request = request.header(&header.name, &header.value);
    }
    let answer = request.send().await.map_err(|error| {
        let cause = std::iter::successors(std::error::Error::source(&error), |e| e.source()).last();
        format!("Get {url:?}: {}", cause.map_or_else(|| error.to_string(), ToString::to_string))
    })?;
    let code = answer.status().as_u16();
    if (200..400).contains(&code) { Ok(()) } else { Err(format!("HTTP probe failed with statuscode: {code}")) }
}

/// `grpc.health.v1.Health/Check`, whose two messages are small enough to write by hand.
async fn grpc_check(grpc: &GRPCAction, ip: Option<IpAddr>) -> Result<(), String> {
    let host = host(None, ip)?;
    let port = u16::try_from(grpc.port).map_err(|_| format!("no port {}", grpc.port))?;
    let stream = TcpStream::connect((host.trim_matches(['[', ']']), port))
        .await
        .map_err(|error| format!("dial tcp {host}:{port}: {error}"))?;
    let shake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = shake.await.map_err(|error| format!("gRPC: {error}"))?;
    let driver = tokio::spawn(connection);
    let request = http::Request::post(format!("http://{host}:{port}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(grpc_request(grpc.service.as_deref().unwrap_or_default())))
        .map_err(|error| format!("gRPC: {error}"))?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(|error| format!("gRPC: {error}"))?;
        let headers = answer.headers().clone();
        let collected = answer.into_body().collect().await.map_err(|error| format!("gRPC: {error}"))?;
        let trailers = collected.trailers().cloned().unwrap_or(headers);
        let status = trailers.get("grpc-status").and_then(|v| v.to_str().ok()).unwrap_or("0").to_owned();
        if status != "0" {
            return Err(format!("gRPC status {status}"));
        }
        grpc_serving(collected.to_bytes())
    };
    let result = exchange.await;
    driver.abort();
    result
}

/// A length-prefixed message with field 1, the service's name.
fn grpc_request(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = vec![0u8];
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    framed.extend_from_slice(&message);
    framed.into()
}

/// Field 1 of the answer is 1 when the service is serving.
fn grpc_serving(mut body: Bytes) -> Result<(), String> {
    if body.len() < 5 {
        return Err("gRPC: the answer is empty".to_owned());
    }
    body.advance(5);
    match body.as_ref() {
        [0x08, 1, ..] => Ok(()),
        _ => Err("service unhealthy (not SERVING)".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[test]
    fn ports_by_number_and_name() {
        let value = serde_json::json!({"name": "c", "ports": [{"name": "http", "containerPort": 8080}]});
        let container: Container = serde_json::from_value(value).expect("a container");
        assert_eq!(port(&IntOrString::Int(80), &container), Ok(80));
        assert_eq!(port(&IntOrString::String("http".into()), &container), Ok(8080));
        assert!(port(&IntOrString::String("ftp".into()), &container).is_err());
        assert!(port(&IntOrString::Int(70000), &container).is_err());
    }

    #[test]
    fn grpc_messages() {
        assert_eq!(grpc_request("").as_ref(), [0, 0, 0, 0, 0]);
        assert_eq!(grpc_request("ab").as_ref(), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(grpc_serving(Bytes::from_static(&[0, 0, 0, 0, 2, 8, 1])), Ok(()));
        assert!(grpc_serving(Bytes::from_static(&[0, 0, 0, 0, 2, 8, 2])).is_err());
        assert!(grpc_serving(Bytes::from_static(&[0, 0, 0, 0, 0])).is_err());
    }

    /// Answers one connection after the other with the given status lines.
    async fn answers(lines: &'static [&'static str]) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        tokio::spawn(async move {
            for line in lines {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let mut buffer = [0u8; 1024];
                assert!(stream.read(&mut buffer).await.expect("a request") > 0);
                let text = format!("HTTP/1.1 {line}\r\ncontent-length: 0\r\nlocation: /\r\n\r\n");
                stream.write_all(text.as_bytes()).await.expect("an answer");
            }
        });
        port
    }

    #[tokio::test]
    async fn http_codes_below_400_pass() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let port = answers(&["200 OK", "302 Found", "404 Not Found"]).await;
        let get = HTTPGetAction { port: IntOrString::Int(port.into()), ..HTTPGetAction::default() };
        let ip = Some(IpAddr::from([127, 0, 0, 1]));
        let mut results = Vec::new();
        for _ in 0..3 {
            results.push(http_get(&get, &Container::default(), ip, Duration::from_secs(5)).await);
        }
        let refused = "HTTP probe failed with statuscode: 404".to_owned();
        assert_eq!(results, [Ok(()), Ok(()), Err(refused)]);
    }
}
