//! Pushes and deletions: uploads of blobs, manifests. Everything here has passed [`super::gate`].

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use crds::names::RepositoryName;
use http::{HeaderName, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyDataStream, BodyExt};
use hyper::body::{Body as _, Incoming};
use tokio::time::timeout;

use super::{
    body::Body,
    client::Client,
    error::{ApiError, ToApi},
    gate::{Admitted, Gate},
    mark,
    report::Report,
    value,
};
use crate::{
    oci::{Digest, Endpoint, ErrorCode, ImageName, ManifestQuery, MediaType, PushedManifest, Reference, UploadQuery},
    repository::{
        Asking, BlobRequest, Group, Hosted, Leaf, Meant, PushError, Repository, Want,
        hosted::push::{Chunk, MAX_MANIFEST},
    },
    routing::Route,
    store::uploads::{Upload, UploadError},
};

/// What of a refused body is read, so that the client, who is still sending, gets to see the answer.
const DRAINED: usize = 8 * 1024 * 1024;

/// How long that may take.
const DRAIN_FOR: Duration = Duration::from_secs(5);

/// A push or deletion that was let in.
pub(super) struct Pushing<'a> {
    pub(super) gate: &'a Gate<'a>,
    pub(super) admitted: &'a Admitted<'a>,
    /// What takes it.
    pub(super) hosted: &'a Arc<Hosted>,
    /// The group through which it comes.
    pub(super) group: Option<&'a Group>,
    pub(super) route: &'a Route,
    pub(super) client: Client,
    pub(super) request: &'a Request<()>,
    pub(super) body: Incoming,
}

/// The repository that takes the pushes to another, and the group where that is one.
pub(super) fn target(repository: &Repository) -> Result<(&Arc<Hosted>, Option<&Group>), ApiError> {
    let name = repository.name();
    let read_only = |message| Err(ApiError::new(ErrorCode::Unsupported, StatusCode::METHOD_NOT_ALLOWED, message));
    match repository {
        Repository::Leaf(Leaf::Hosted(hosted)) => Ok((hosted, None)),
        Repository::Leaf(Leaf::Mirror(_)) => read_only(format!(
            "{name} is a mirror: it serves what its upstream has, takes no pushes and deletes nothing; push to a hosted repository, or to the upstream"
        )),
        Repository::Group(group) => match (group.push_target(), &group.settings().push_to) {
            (Some(hosted), _) => Ok((hosted, Some(group))),
            (None, None) => read_only(format!(
                "{name} is a group without pushTo: it takes no pushes and deletes nothing; push to the member that should have the image"
            )),
            (None, Some(member)) => {
                let message = format!(
                    "pushes to {name} go to {member} (pushTo), which is no hosted repository here that could take them; mend or replace it"
                );
                Err(ApiError::new(ErrorCode::Unavailable, StatusCode::SERVICE_UNAVAILABLE, message))
            }
        },
    }
}

impl Pushing<'_> {
    /// Does it, and answers.
    pub(super) async fn answer(mut self, endpoint: &Endpoint, report: &mut Report) -> Result<Response<Body>, ApiError> {
        let answered = match endpoint {
            Endpoint::Uploads { image, rest } => {
                report.kind("upload", rest);
                self.upload(image, rest).await
            }
            Endpoint::Manifest { image, reference } => {
                report.kind("manifest", &reference.to_string());
                self.manifest(image, reference).await
            }
            Endpoint::Blob { image, digest } if *self.request.method() == Method::DELETE => {
                report.kind("blob", digest.as_str());
                let deleted = self.hosted.delete_blob(image, digest).await;
                deleted
                    .map(|()| empty(StatusCode::ACCEPTED))
                    .map_err(|error| self.refused(&error, ErrorCode::BlobUnknown))
            }
            _ => Err(unsupported(self.request.method())),
        };
        if answered.is_err() {
            self.drain().await;
        }
        answered
    }

    fn refused(&self, error: &PushError, absent: ErrorCode) -> ApiError {
        Refused { error, absent }.to_api(self.client)
    }

    /// Reads what the client still sends: it may not look at an answer before it has sent all. One that asked whether to send at
    /// all has not begun.
    async fn drain(&mut self) {
        if self.request.headers().contains_key(header::EXPECT) {
            return;
        }
        let drained = async {
            let mut read = 0;
            while let Some(Ok(frame)) = self.body.frame().await {
                read += frame.data_ref().map_or(0, Bytes::len);
                if read > DRAINED {
                    break;
                }
            }
        };
        // What is not read by then is cut off.
        let _ = timeout(DRAIN_FOR, drained).await;
    }

    async fn upload(&mut self, image: &ImageName, id: &str) -> Result<Response<Body>, ApiError> {
        if id.is_empty() {
            if *self.request.method() != Method::POST {
                return Err(unsupported(self.request.method()));
            }
            return self.begin(image).await.map_err(|error| self.refused(&error, ErrorCode::NameUnknown));
        }
        let found = self.hosted.upload(image, id).await;
        let upload = found.map_err(|error| self.refused(&error, ErrorCode::BlobUploadUnknown))?;
        let answered = match *self.request.method() {
            Method::GET => Ok(self.progress(StatusCode::NO_CONTENT, image, &upload)),
            Method::PATCH => self.append(&upload).await.map(|()| self.progress(StatusCode::ACCEPTED, image, &upload)),
            Method::PUT => self.finish(image, &upload).await,
            Method::DELETE => self.hosted.cancel_upload(&upload).await.map(|()| empty(StatusCode::NO_CONTENT)),
            _ => return Err(unsupported(self.request.method())),
        };
        answered.map_err(|error| {
            let refused = self.refused(&error, ErrorCode::BlobUploadUnknown);
            match error {
                // The client is told from where to go on.
                PushError::Upload(UploadError::OutOfOrder(_)) | PushError::ContentRange(_) => {
                    let progress = self.progress(StatusCode::RANGE_NOT_SATISFIABLE, image, &upload);
                    refused.with(progress.headers())
                }
                _ => refused,
            }
        })
    }

    /// POST: a blob that is mounted, or sent at once, or will be sent.
    async fn begin(&mut self, image: &ImageName) -> Result<Response<Body>, PushError> {
        let query = UploadQuery::parse(self.request.uri().query())?;
        if let Some(digest) = &query.mount
            && self.mount(image, digest, query.from.as_deref()).await?
        {
            return Ok(self.created(image, digest));
        }
        let upload = self.hosted.begin_upload(image, &query).await?;
        let Some(digest) = &query.digest else { return Ok(self.progress(StatusCode::ACCEPTED, image, &upload)) };
        let sent = match self.append(&upload).await {
            Ok(()) => self.hosted.finish_upload(image, &upload, digest).await,
            Err(error) => Err(error),
        };
        if let Err(error) = sent {
            // The client does not know its name, so nobody will go on with it. It may be gone already.
            let _ = self.hosted.cancel_upload(&upload).await;
            return Err(error);
        }
        Ok(self.created(image, digest))
    }

    /// Whether a blob became one of the image because another image has it that the client may pull: the one that it names, or
    /// one that is known to.
    async fn mount(&self, image: &ImageName, digest: &Digest, from: Option<&str>) -> Result<bool, PushError> {
        self.hosted.check_writable()?;
        let sources = match from {
            Some(name) => self.admitted.pulled_from(name).collect(),
            None if self.gate.server.store.has(digest).await => {
                let hosted = Repository::from(Leaf::Hosted(Arc::clone(self.hosted)));
                self.admitted.holders_of(digest, &hosted, image).await
            }
            None => Vec::new(),
        };
        let may_pull = |name: &RepositoryName, image: &ImageName| self.admitted.may_pull(name, image);
        for (repository, source) in sources {
            let request = BlobRequest { want: Want::Head, may_go_elsewhere: false };
            let asking = Asking { meant: Meant::Unsaid, may_pull: &may_pull };
            // Whatever is wrong with the source, the client can send the blob.
            if repository.blob(&source, digest, request, &asking).await.is_ok()
                && self.hosted.link(image, digest).await?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn append(&mut self, upload: &Arc<Upload>) -> Result<(), PushError> {
        if self.body.is_end_stream() {
            return self.hosted.check_writable();
        }
        let text = |name: HeaderName| Some(self.request.headers().get(name)?.to_str().unwrap_or_default().to_owned());
        let range = text(header::CONTENT_RANGE);
        let chunk = Chunk {
            range,
            length: self.body.size_hint().exact(),
            stall: self.stall(),
            body: BodyDataStream::new(&mut self.body),
        };
        self.hosted.append(upload, chunk).await.map(drop)
    }

    async fn finish(&mut self, image: &ImageName, upload: &Arc<Upload>) -> Result<Response<Body>, PushError> {
        let digest = UploadQuery::parse(self.request.uri().query())?.digest.ok_or(PushError::NoDigest)?;
        self.append(upload).await?;
        self.hosted.finish_upload(image, upload, &digest).await?;
        Ok(self.created(image, &digest))
    }

    async fn manifest(&mut self, image: &ImageName, reference: &Reference) -> Result<Response<Body>, ApiError> {
        let done = match *self.request.method() {
            Method::DELETE => self.hosted.delete_manifest(image, reference).await.map(|()| empty(StatusCode::ACCEPTED)),
            Method::PUT => self.push_manifest(image, reference).await,
            _ => return Err(unsupported(self.request.method())),
        };
        done.map_err(|error| self.refused(&error, ErrorCode::ManifestUnknown))
    }

    async fn push_manifest(&mut self, image: &ImageName, reference: &Reference) -> Result<Response<Body>, PushError> {
        self.hosted.check_writable()?;
        let query = ManifestQuery::parse(self.request.uri().query())?;
        let content_type = self.request.headers().get(header::CONTENT_TYPE);
        let content_type: Option<MediaType> = content_type.and_then(|text| text.to_str().ok()?.parse().ok());
        let bytes = self.read_manifest().await?;
        if let Some(group) = self.group {
            self.bring_blobs(group, image, content_type.as_ref(), &bytes).await?;
        }
        let taken = self.hosted.push_manifest(image, reference, query, content_type.as_ref(), bytes).await?;
        let mut response = empty(StatusCode::CREATED);
        let headers = response.headers_mut();
        let path = self.address(&format!("{image}/manifests/{}", taken.digest));
        let subject = taken.subject.as_ref().map(|subject| ("oci-subject", subject.to_string()));
        let tags = taken.tags.iter().map(|tag| ("oci-tag", tag.to_string()));
        let fixed = [("location", path), ("docker-content-digest", taken.digest.to_string())];
        for (name, text) in fixed.into_iter().chain(subject).chain(tags) {
            if let Some(value) = value(&text) {
                headers.append(name, value);
            }
        }
        Ok(response)
    }

    /// Gives the image the blobs of a manifest that its pusher may read through the group: a client that found them there by HEAD
    /// does not send them. What nobody has is left to the repository to say.
    async fn bring_blobs(
        &self,
        group: &Group,
        image: &ImageName,
        content_type: Option<&MediaType>,
        manifest: &[u8],
    ) -> Result<(), PushError> {
        let may_pull = |name: &RepositoryName, image: &ImageName| self.admitted.may_pull(name, image);
        let asking = Asking { meant: Meant::Unsaid, may_pull: &may_pull };
        for blob in PushedManifest::parse(manifest, content_type)?.required {
            if self.hosted.blob(image, &blob.digest, Want::Head).await.is_err()
                && group.fetch_blob(image, &blob.digest, &asking).await.is_ok()
            {
                self.gate.server.store.named(&blob.digest).await;
                self.hosted.link(image, &blob.digest).await?;
            }
        }
        Ok(())
    }

    async fn read_manifest(&mut self) -> Result<Bytes, PushError> {
        if self.body.size_hint().lower() > MAX_MANIFEST as u64 {
            return Err(PushError::TooLarge);
        }
        let stall = self.stall();
        let mut read = BytesMut::new();
        loop {
            let frame = timeout(stall, self.body.frame()).await.map_err(|_| UploadError::Stalled(stall))?;
            let Some(frame) = frame else { return Ok(read.freeze()) };
            let frame = frame.map_err(|error| UploadError::Body(error.into()))?;
            if let Some(data) = frame.data_ref() {
                if read.len() + data.len() > MAX_MANIFEST {
                    return Err(PushError::TooLarge);
                }
                read.extend_from_slice(data);
            }
        }
    }

    /// The address of something in the repository, as the client reaches it; a mere path where it did not say how it does.
    fn address(&self, path: &str) -> String {
        self.gate.origin.address(self.route, path)
    }

    /// A client that neither sends nor takes is given this long.
    fn stall(&self) -> Duration {
        self.gate.current.settings.server.limits.write_stall.get()
    }

    /// How far an upload has come. The range has an end although nothing may have come: so the spec wants it.
    fn progress(&self, status: StatusCode, image: &ImageName, upload: &Upload) -> Response<Body> {
        let mut response = empty(status);
        let id = upload.id().as_str();
        let path = self.address(&format!("{image}/blobs/uploads/{id}"));
        let range = format!("0-{}", upload.offset().saturating_sub(1));
        for (name, text) in [("location", path.as_str()), ("range", &range), ("docker-upload-uuid", id)] {
            if let Some(value) = value(text) {
                response.headers_mut().insert(name, value);
            }
        }
        response
    }

    fn created(&self, image: &ImageName, digest: &Digest) -> Response<Body> {
        let mut response = empty(StatusCode::CREATED);
        let path = self.address(&format!("{image}/blobs/{digest}"));
        for (name, text) in [("location", path.as_str()), ("docker-content-digest", digest.as_str())] {
            if let Some(value) = value(text) {
                response.headers_mut().insert(name, value);
            }
        }
        response
    }
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::none());
    *response.status_mut() = status;
    mark(&mut response);
    response
}

fn unsupported(method: &Method) -> ApiError {
    let message = format!("{method} is not offered here");
    ApiError::new(ErrorCode::Unsupported, StatusCode::METHOD_NOT_ALLOWED, message)
}

/// A refused push or deletion, with the code that the spec has for what is absent.
pub(super) struct Refused<'a> {
    pub(super) error: &'a PushError,
    pub(super) absent: ErrorCode,
}
