//! What only a node can answer: logs are streamed through, and exec and attach become a tunnel of bytes between the
//! client and the node's own server. What flows in a tunnel is not looked at.

use std::{net::IpAddr, time::Duration};

use api::{
    meta,
    registry::by_plural,
    status::{Reason, Status},
};
use axum::body::Body;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use crate::{
    App,
    handlers::{Call, header_text},
    present, query,
};

/// Where nodes listen that do not say otherwise.
const NODE_PORT: u16 = 10250;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// From the request to the head of the answer: a node looks only at its own disk and processes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Of a node's refusal, as much is passed on.
const MAX_REFUSAL: usize = 64 << 10;

const LOG_PARAMETERS: &[&str] =
    &["follow", "previous", "tailLines", "sinceSeconds", "sinceTime", "timestamps", "limitBytes"];
const EXEC_PARAMETERS: &[&str] = &["command", "stdin", "stdout", "stderr", "tty"];

/// What exec and attach are spoken in; the node knows how.
const UPGRADES: &[&str] = &["websocket", "SPDY/3.1"];

/// Headers of a handshake to one of these, in either direction.
const HANDSHAKE: &[&str] = &[
    "connection",
    "upgrade",
    "sec-websocket-key",
    "sec-websocket-version",
    "sec-websocket-protocol",
    "sec-websocket-accept",
    "x-stream-protocol-version",
];

/// Where a container runs.
struct Place {
    node: String,
    address: IpAddr,
    port: u16,
    container: String,
}

pub async fn log(call: Call) -> Result<Response<Body>, Status> {
    let pod = pod(&call)?;
    if pod["spec"]["nodeName"].as_str().unwrap_or_default().is_empty() {
        // Nothing ran yet, so there is nothing to show.
        return Ok(present::text(""));
    }
    let place = place(&call.app, &call, &pod)?;
    let request = request(&call, &place, "containerLogs", LOG_PARAMETERS);
    let response = send(&call.app, &place, request).await?;
    if response.status() != StatusCode::OK {
        return Err(refusal(&place, response).await);
    }
    Ok(present::text(Body::new(response.into_body())))
}

pub async fn tunnel(mut call: Call) -> Result<Response<Body>, Status> {
    let pod = pod(&call)?;
    let place = place(&call.app, &call, &pod)?;
    let asked = header_text(&call.parts.headers, header::UPGRADE);
    if !UPGRADES.iter().any(|known| asked.eq_ignore_ascii_case(known)) {
        return Err(Status::bad_request(format!("this needs an upgrade to one of {}", UPGRADES.join(", "))));
    }
    let Some(client) = call.parts.extensions.remove::<hyper::upgrade::OnUpgrade>() else {
        return Err(Status::bad_request("this connection cannot be upgraded: use HTTP/1.1"));
    };
    let mut request = request(&call, &place, &call.target.subresource, EXEC_PARAMETERS);
    copy_handshake(&call.parts.headers, request.headers_mut());
    let mut response = send(&call.app, &place, request).await?;
    // Anything but an upgrade ends here, on both sides: a tunnel that half exists would be an open door.
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refusal(&place, response).await);
    }
    let node = hyper::upgrade::on(&mut response);
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    copy_handshake(response.headers(), answer.headers_mut());
    tokio::spawn(async move {
        let (Ok(client), Ok(node)) = tokio::join!(client, node) else { return };
        let (mut client, mut node) = (TokioIo::new(client), TokioIo::new(node));
        if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut node).await {
            tracing::debug!(%error, "tunnel to a node ended");
        }
    });
    Ok(answer)
}

fn copy_handshake(from: &http::HeaderMap, to: &mut http::HeaderMap) {
    for name in HANDSHAKE {
        for value in from.get_all(*name) {
            to.append(*name, value.clone());
        }
    }
}

fn pod(call: &Call) -> Result<Value, Status> {
    let found = call.app.find(call.target.kind, &call.target.namespace, &call.target.name);
    found?.ok_or_else(|| Status::not_found(call.target.kind, &call.target.name))
}

fn place(app: &App, call: &Call, pod: &Value) -> Result<Place, Status> {
    let name = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if name.is_empty() {
        return Err(Status::bad_request(format!("pod {} does not have a host assigned", meta::name(pod))));
    }
    let nodes = by_plural("", "v1", "nodes").ok_or_else(Status::no_such_resource)?;
    let node = app.find(nodes, "", name)?.ok_or_else(|| Status::not_found(nodes, name))?;
    let (address, port) = address(&node).ok_or_else(|| {
        Status::service_unavailable(format!("node {name} has not said at which address it can be reached"))
    })?;
    let container = container(pod, call.query.get("container"))?;
    Ok(Place { node: name.into(), address, port, container })
}

fn address(node: &Value) -> Option<(IpAddr, u16)> {
    let mut addresses = node["status"]["addresses"].as_array()?.iter();
    let address = addresses.find(|a| a["type"] == "InternalIP")?["address"].as_str()?.parse().ok()?;
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64();
    Some((address, port.and_then(|p| u16::try_from(p).ok()).unwrap_or(NODE_PORT)))
}

/// The container that is meant: the one named, the annotated default, or the only one.
fn container(pod: &Value, wanted: Option<&str>) -> Result<String, Status> {
    let names = |field: &str| -> Vec<&str> {
        let list = pod["spec"][field].as_array().into_iter().flatten();
        list.filter_map(|c| c["name"].as_str()).collect()
    };
    let (containers, init) = (names("containers"), names("initContainers"));
    let ephemeral = names("ephemeralContainers");
    let known = |name: &str| [&containers, &init, &ephemeral].iter().any(|list| list.contains(&name));
    match (wanted, meta::annotation(pod, "kubectl.kubernetes.io/default-container"), &containers[..]) {
        (Some(name), _, _) if known(name) => Ok(name.to_owned()),
        (Some(name), _, _) => {
            Err(Status::bad_request(format!("container {name} is not valid for pod {}", meta::name(pod))))
        }
        (None, Some(name), _) if known(name) => Ok(name.to_owned()),
        (None, _, [only]) => Ok((*only).to_owned()),
        (None, _, _) => {
            let mut why = format!(
                "a container name must be specified for pod {}, choose one of: [{}]",
                meta::name(pod),
                containers.join(" ")
            );
            if !init.is_empty() {
                why += &format!(" or one of the init containers: [{}]", init.join(" "));
            }
            Err(Status::bad_request(why))
        }
    }
}

fn request(call: &Call, place: &Place, action: &str, parameters: &[&str]) -> Request<Empty<bytes::Bytes>> {
    let encode = query::encode;
    let pairs = parameters.iter().flat_map(|name| {
        call.query.all(name).filter(|value| !value.is_empty()).map(move |value| format!("{name}={}", encode(value)))
    });
    let path = format!(
        "/{action}/{}/{}/{}?{}",
        encode(&call.target.namespace),
        encode(&call.target.name),
        encode(&place.container),
        pairs.collect::<Vec<_>>().join("&")
    );
    let mut request = Request::new(Empty::new());
    // Every part is percent-encoded, so this is a valid path.
    *request.uri_mut() = path.parse().unwrap_or_default();
    if let Ok(host) = authority(place).parse() {
        request.headers_mut().insert(header::HOST, host);
    }
    request
}

fn authority(place: &Place) -> String {
    std::net::SocketAddr::new(place.address, place.port).to_string()
}

async fn send(app: &App, place: &Place, request: Request<Empty<bytes::Bytes>>) -> Result<Response<Incoming>, Status> {
    let fail = |what: &str, why: &dyn std::fmt::Display| {
        let message = format!("{what} node {} at {}: {why}", place.node, authority(place));
        Status::new(Reason::ServiceUnavailable, message)
    };
    let config = app.tls.borrow().client.clone();
    let connect = async {
        let stream = TcpStream::connect((place.address, place.port)).await?;
        stream.set_nodelay(true)?;
        TlsConnector::from(config).connect(ServerName::IpAddress(place.address.into()), stream).await
    };
    let stream = match timeout(CONNECT_TIMEOUT, connect).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(fail("cannot connect to", &error)),
        Err(_) => return Err(fail("cannot connect to", &"it does not answer")),
    };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| fail("cannot talk to", &e))?;
    tokio::spawn(async move {
        // Ends with the answer's body, or lives on as a tunnel.
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to a node ended");
        }
    });
    match timeout(ANSWER_TIMEOUT, sender.send_request(request)).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) => Err(fail("lost the connection to", &error)),
        Err(_) => Err(fail("got no answer from", &"timed out")),
    }
}

/// What a node says when it cannot do what was asked, as our own answer.
async fn refusal(place: &Place, response: Response<Incoming>) -> Status {
    let code = response.status();
    let body = match timeout(ANSWER_TIMEOUT, Limited::new(response.into_body(), MAX_REFUSAL).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        _ => bytes::Bytes::new(),
    };
    let said: Value = serde_json::from_slice(&body).unwrap_or_default();
    let message = match said["message"].as_str() {
        Some(message) => message.to_owned(),
        None => String::from_utf8_lossy(&body).trim().to_owned(),
    };
    let reason = match code {
        StatusCode::BAD_REQUEST => Reason::BadRequest,
        StatusCode::NOT_FOUND => Reason::NotFound,
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => Reason::Forbidden,
        StatusCode::CONFLICT => Reason::Conflict,
        _ => Reason::InternalError,
    };
    let message = if message.is_empty() { format!("node {} answered {code}", place.node) } else { message };
    Status::new(reason, message)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn containers_are_found_or_named() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}});
        assert_eq!(container(&pod, Some("b")).unwrap(), "b");
        assert_eq!(container(&pod, Some("i")).unwrap(), "i");
        assert!(container(&pod, Some("x")).unwrap_err().message.contains("container x is not valid"));
        let message = container(&pod, None).unwrap_err().message;
        assert!(message.contains("choose one of: [a b]") && message.contains("[i]"), "{message}");
        let mut annotated = pod.clone();
        meta::set_annotation(&mut annotated, "kubectl.kubernetes.io/default-container", "b");
        assert_eq!(container(&annotated, None).unwrap(), "b");
        let one = json!({"metadata": {}, "spec": {"containers": [{"name": "a"}]}});
        assert_eq!(container(&one, None).unwrap(), "a");
    }

    #[test]
    fn nodes_say_where_they_are() {
        let node = |port: Value| json!({"status": {"addresses": [{"type": "Hostname", "address": "a"}, {"type": "InternalIP", "address": "10.0.0.2"}], "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}});
        assert_eq!(address(&node(json!(10251))), Some(("10.0.0.2".parse().unwrap(), 10251)));
        assert_eq!(address(&node(Value::Null)), Some(("10.0.0.2".parse().unwrap(), NODE_PORT)));
        assert_eq!(address(&json!({"status": {}})), None);
    }
}
