//! How does the detail of an error travel?

use prost::Message;
use tonic::{Code, Status};

use crate::net::ErrorDetail;

/// `google.rpc.Status`, which gRPC carries in the trailer `grpc-status-details-bin`.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

/// Name of [`ErrorDetail`] on the wire.
const DETAIL_TYPE: &str = "type.googleapis.com/net.v1.ErrorDetail";

/// An error with its detail.
#[must_use]
pub fn status(code: Code, message: impl Into<String>, detail: &ErrorDetail) -> Status {
    let message = message.into();
    let whole = RpcStatus {
        code: code.into(),
        message: message.clone(),
        details: vec![prost_types::Any {
            type_url: DETAIL_TYPE.to_owned(),
            value: detail.encode_to_vec(),
        }],
    };
    Status::with_details(code, message, whole.encode_to_vec().into())
}

/// The detail of an error, where it has one that can be read.
#[must_use]
pub fn detail(status: &Status) -> Option<ErrorDetail> {
    let whole = RpcStatus::decode(status.details()).ok()?;
    let ours = whole.details.iter().find(|any| any.type_url == DETAIL_TYPE)?;
    ErrorDetail::decode(ours.value.as_slice()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_comes_back() {
        let sent = ErrorDetail {
            reason: "address-taken".to_owned(),
            field: "nics[0].ipv4".to_owned(),
            ..ErrorDetail::default()
        };
        let status = status(Code::AlreadyExists, "10.1.0.7 is taken", &sent);
        assert_eq!(detail(&status), Some(sent));
        assert_eq!(
            (status.code(), status.message()),
            (Code::AlreadyExists, "10.1.0.7 is taken")
        );
        assert_eq!(detail(&Status::internal("plain")), None);
        assert_eq!(
            detail(&Status::with_details(
                Code::Internal,
                "garbage",
                vec![0xff, 1, 2].into()
            )),
            None
        );
    }
}
