//! What stands before every service: the access token, and a net under panics.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use millrace_rpc::v1::{ErrorDetail, ErrorReason};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;

use crate::token::AccessToken;

const HEADER: &str = "authorization";
const SCHEME: &str = "Bearer ";

/// A service behind the access token, whose panics become answers.
#[derive(Clone)]
pub(super) struct Guarded<S> {
    service: S,
    token: Arc<AccessToken>,
}

impl<S> Guarded<S> {
    pub(super) const fn new(service: S, token: Arc<AccessToken>) -> Self {
        Self { service, token }
    }
}

impl<S: NamedService> NamedService for Guarded<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Guarded<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible> + Send,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if !has_token(&request, &self.token) {
            return Box::pin(std::future::ready(Ok(token_invalid().into_http())));
        }
        let path = request.uri().path().to_owned();
        let call = AssertUnwindSafe(self.service.call(request)).catch_unwind();
        Box::pin(async move {
            call.await.unwrap_or_else(|_| {
                tracing::error!(call = path, "a call panicked: please report it");
                Ok(panicked().into_http())
            })
        })
    }
}

fn has_token<B>(request: &http::Request<B>, token: &AccessToken) -> bool {
    let header = request.headers().get(HEADER).and_then(|value| value.to_str().ok());
    header.and_then(|value| value.strip_prefix(SCHEME)).is_some_and(|presented| token.is(presented))
}

fn token_invalid() -> Status {
    ErrorDetail::new(ErrorReason::TokenInvalid)
        .hint("Send the contents of the daemon's file access.token as `authorization: Bearer TOKEN`.")
        .into_status("no access token, or a wrong one")
}

fn panicked() -> Status {
    ErrorDetail::new(ErrorReason::Internal)
        .hint("Please report it, with the daemon's log.")
        .into_status("the call broke one of the node's own rules")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tonic::Code;

    use super::*;

    #[derive(Clone)]
    struct Panics;

    impl Service<http::Request<Body>> for Panics {
        type Response = http::Response<Body>;
        type Error = Infallible;
        type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: http::Request<Body>) -> Self::Future {
            Box::pin(async { panic!("a handler") })
        }
    }

    async fn code(authorization: Option<&str>) -> Code {
        let mut guarded = Guarded::new(Panics, Arc::new(AccessToken::of(&"a".repeat(64))));
        let mut request = http::Request::new(Body::empty());
        if let Some(value) = authorization {
            request.headers_mut().insert(HEADER, value.parse().unwrap());
        }
        let response = guarded.call(request).await.unwrap();
        let status = Status::from_header_map(response.headers()).unwrap();
        assert!(ErrorDetail::from_status(&status).is_some_and(|detail| !detail.hint.is_empty()));
        status.code()
    }

    #[tokio::test]
    async fn without_the_token_nobody_gets_in() {
        for value in [None, Some(""), Some("Bearer"), Some("Bearer "), Some("Basic aaaa")] {
            assert_eq!(code(value).await, Code::Unauthenticated, "{value:?}");
        }
        let bare = "a".repeat(64);
        assert_eq!(code(Some(&bare)).await, Code::Unauthenticated);
        assert_eq!(code(Some(&format!("Bearer {}", "b".repeat(64)))).await, Code::Unauthenticated);
    }

    #[tokio::test]
    async fn a_panic_is_an_answer() {
        assert_eq!(code(Some(&format!("Bearer {}", "a".repeat(64)))).await, Code::Internal);
    }
}
