//! Who asks, and whether they may: the one place that every request for a repository passes before the repository is touched.
//! Calls `access`, which judges.

use std::{net::IpAddr, sync::Arc};

use crds::names::RepositoryName;
use http::{HeaderMap, StatusCode, header};

use super::{error::ApiError, origin::Origin, report::Report};
use crate::{
    access::{
        Action, Asked, Auth, Caller, Kind, Presented, Refused, SHARED_SERVICE, Target, User, Verdict, acting, judge,
        may, token::wanted_scopes,
    },
    metrics::FailedLogin,
    oci::{Digest, ErrorCode, ImageName},
    repository::{Leaf, MayPull, Repository},
    routing::{self, Resolved, Route, TOKEN},
    server::{Current, Server},
};

/// A request, as far as it says who it is from.
pub(super) struct Gate<'a> {
    pub(super) server: &'a Server,
    pub(super) current: &'a Current,
    /// Where it comes from.
    pub(super) address: IpAddr,
    /// Where the client reached us.
    pub(super) origin: &'a Origin,
    presented: Presented,
}

/// What a request wants to do with a repository.
pub(super) struct Wish<'r> {
    pub(super) action: Action,
    /// With this image; without one, with any.
    pub(super) image: Option<&'r ImageName>,
    /// The image that it reads on the side: whence a blob is to be mounted, as the client calls it.
    pub(super) from: Option<&'r str>,
}

/// A request that was let in.
pub(super) struct Admitted<'a> {
    current: &'a Current,
    route: &'a Route,
    caller: Caller,
    /// As whom it may be taken for the image that it asks for.
    user: Option<User>,
    /// That image, as the client writes it.
    written: Option<String>,
}

impl<'a> Gate<'a> {
    pub(super) fn new(
        server: &'a Server,
        current: &'a Current,
        address: IpAddr,
        origin: &'a Origin,
        headers: &HeaderMap,
    ) -> Self {
        let presented = Presented::of(headers.get_all(header::AUTHORIZATION).iter().map(http::HeaderValue::as_bytes));
        Self { server, current, address, origin, presented }
    }

    /// Lets a request in that wants to do something with an image of a repository, or says why not.
    ///
    /// Where everyone may do it, what comes as `Authorization` is not even looked at: engines send what is for another
    /// registry. A group alone looks, as a member may be for some only, and takes whom it does not know for nobody.
    pub(super) async fn admit(
        &self,
        route: &'a Route,
        repository: &Repository,
        wish: &Wish<'_>,
        report: &mut Report,
    ) -> Result<Admitted<'a>, ApiError> {
        let Wish { action, image, from } = *wish;
        let target = target(repository);
        let permissions = &self.auth().permissions;
        let known = image.map(|image| repository.named(image));
        let open = may(permissions, &target, None, action, known.as_ref());
        if open && !matches!(repository, Repository::Group(_)) {
            let (caller, user, written) = (Caller::Anonymous, None, None);
            return Ok(Admitted { current: self.current, route, caller, user, written });
        }
        let written = image.map(|image| written(route, image));
        let services = [service(route)];
        let asked = Asked { action, image: known.as_ref(), written: written.as_deref(), services: &services };
        let scope = || written.as_deref().map(|name| wanted_scopes(name, action, from));
        let caller = match self.caller().await {
            Ok(caller) => caller,
            Err(_) if open => Caller::Anonymous,
            Err(refused) => return Err(self.refused(refused, service(route), scope().as_deref())),
        };
        let user = acting(&caller, &asked).cloned();
        if let Some(user) = caller.user() {
            report.user(user.name());
        }
        match judge(permissions, &target, &caller, &asked) {
            Verdict::Allow => Ok(Admitted { current: self.current, route, caller, user, written }),
            Verdict::LogIn => {
                let hint = if self.auth().has_logins() {
                    ""
                } else {
                    ", but this server has no logins (auth of its CacheServer)"
                };
                let message = format!("{} needs a login for this{hint}", route.repository);
                Err(self.challenge(message, service(route), scope().as_deref(), None))
            }
            Verdict::OtherToken => {
                let message = format!("this token is not for that; get one of the service {}", service(route));
                Err(self.challenge(message, service(route), scope().as_deref(), Some("insufficient_scope")))
            }
            Verdict::Denied => {
                let message = format!(
                    "{} may not {} {} of {}; a permission of the CacheServer would have to say so",
                    caller.user().map_or("nobody", User::name),
                    action.as_str(),
                    image.map_or("any image", ImageName::as_str),
                    route.repository
                );
                Err(ApiError::new(ErrorCode::Denied, StatusCode::FORBIDDEN, message))
            }
        }
    }

    /// The challenge for a token with which a blob can be mounted from `from` too, if the client's is not for that image although
    /// its user may pull it. Docker's registry asks so as well; whoever may not pull sends the blob.
    pub(super) fn wider_token(&self, admitted: &Admitted<'_>, from: &str) -> Option<ApiError> {
        let verdicts: Vec<_> =
            admitted.called(from).map(|(repository, image)| admitted.pull(repository, &image, from)).collect();
        if verdicts.contains(&Verdict::Allow) || !verdicts.contains(&Verdict::OtherToken) {
            return None;
        }
        let scopes = wanted_scopes(admitted.written.as_deref()?, Action::Push, Some(from));
        let message = format!("this token is not for {from}, from which to mount; get one for both");
        Some(self.challenge(message, service(admitted.route), Some(&scopes), Some("insufficient_scope")))
    }

    /// Lets `/v2/` of a repository through, or asks for a login where something of it needs one: engines learn nowhere else
    /// that they can log in, and ask no more once they were told 200.
    pub(super) async fn base(
        &self,
        route: &Route,
        repository: &Repository,
        report: &mut Report,
    ) -> Result<(), ApiError> {
        let target = target(repository);
        if !target.wants_logins() && !self.hides_members(repository) {
            return Ok(());
        }
        self.logged_in(service(route), target.anonymous_pull, report).await
    }

    /// Whether a group has members for those who log in.
    fn hides_members(&self, repository: &Repository) -> bool {
        let Repository::Group(group) = repository else { return false };
        let is_open = |name: &_| self.current.repository(name).is_some_and(|it| target(it).anonymous_pull);
        let seen = group.leaves_for(&is_open).filter(|leaf| is_open(leaf.name()));
        self.auth().has_logins() && seen.count() < group.leaves().count()
    }

    /// The same for `/v2/` of the main port, which is that of all repositories.
    ///
    /// Without logins it is 200, as there is nothing to verify. With them it asks for one where any repository needs one, since
    /// an engine that is told 200 here sends no credentials for any repository behind it, and says that a login succeeded whatever
    /// the password. Who comes with credentials is told whether they are right.
    pub(super) async fn server_base(&self, report: &mut Report) -> Result<(), ApiError> {
        let mut targets = self.current.repositories().map(target);
        if !self.auth().has_logins() || (self.presented == Presented::Nothing && !targets.any(|it| it.wants_logins())) {
            return Ok(());
        }
        self.logged_in(SHARED_SERVICE, true, report).await
    }

    async fn logged_in(&self, service: &str, nobody_too: bool, report: &mut Report) -> Result<(), ApiError> {
        let caller = self.caller().await.map_err(|refused| self.refused(refused, service, None))?;
        if let Some(user) = caller.user() {
            report.user(user.name());
        }
        match &caller {
            Caller::Anonymous => Err(self.challenge("log in".to_owned(), service, None, None)),
            Caller::User(_) => Ok(()),
            Caller::Token(token) if token.service == service && (nobody_too || token.user.is_some()) => Ok(()),
            Caller::Token(_) => {
                let message = format!("this token is not for the service {service}");
                Err(self.challenge(message, service, None, Some("invalid_token")))
            }
        }
    }

    pub(super) fn auth(&self) -> &'a Arc<Auth> {
        &self.current.settings.server.auth
    }

    /// Who presents what the request presents.
    pub(super) async fn caller(&self) -> Result<Caller, Refused> {
        self.check(&self.presented).await
    }

    /// Who presents this. A failure is counted and logged.
    pub(super) async fn check(&self, presented: &Presented) -> Result<Caller, Refused> {
        let found = self.server.logins.caller(self.auth(), presented, self.address).await;
        if let (Err(refused), Presented::Password { user, .. }) = (&found, presented) {
            let reason = match refused {
                Refused::TooMany(_) => FailedLogin::Limited,
                _ => FailedLogin::Wrong,
            };
            self.server.metrics.login_failed(reason);
            tracing::warn!(client.address = %self.address, user.name = user, reason = %refused, "a login failed");
        }
        found
    }

    /// What a client is told whose login is refused.
    pub(super) fn refused(&self, refused: Refused, service: &str, scope: Option<&str>) -> ApiError {
        let message = refused.to_string();
        match refused {
            Refused::TooMany(wait) => ApiError::new(ErrorCode::TooManyRequests, StatusCode::TOO_MANY_REQUESTS, message)
                .retry_after(Some(wait)),
            Refused::Token(_) => self.challenge(message, service, scope, Some("invalid_token")),
            Refused::NoLogins | Refused::Wrong | Refused::Unreadable => self.challenge(message, service, scope, None),
        }
    }

    /// An error that says to log in, with how one does to pull what was asked for.
    pub(super) fn with_login(&self, admitted: &Admitted<'_>, error: ApiError) -> ApiError {
        let scope = admitted.written.as_deref().map(|name| wanted_scopes(name, Action::Pull, None));
        let why = matches!(admitted.caller, Caller::Token(_)).then_some("insufficient_scope");
        error.with_challenge(self.challenge_text(service(admitted.route), scope.as_deref(), why))
    }

    fn challenge(&self, message: String, service: &str, scope: Option<&str>, error: Option<&str>) -> ApiError {
        let challenge = self.challenge_text(service, scope, error);
        ApiError::new(ErrorCode::Unauthorized, StatusCode::UNAUTHORIZED, message).with_challenge(challenge)
    }

    fn challenge_text(&self, service: &str, scope: Option<&str>, error: Option<&str>) -> String {
        let more = [("scope", scope), ("error", error)]
            .map(|(name, value)| value.map_or_else(String::new, |value| format!(",{name}=\"{value}\"")));
        format!("Bearer realm=\"{}\",service=\"{service}\"{}", self.origin.realm(), more.concat())
    }
}

impl Admitted<'_> {
    /// Whether the one who asks may pull an image from a repository of that name. Groups ask it for their members.
    pub(super) fn may_pull(&self, name: &RepositoryName, image: &ImageName) -> MayPull {
        let Some(repository) = self.current.repository(name) else { return MayPull::No };
        let auth = &self.current.settings.server.auth;
        let (target, user) = (target(repository), self.user.as_ref());
        if may(&auth.permissions, &target, user, Action::Pull, Some(&repository.named(image))) {
            MayPull::Yes
        } else if user.is_none() && auth.has_logins() {
            MayPull::AfterLogin
        } else {
            MayPull::No
        }
    }

    /// What the client may mean by `name` in `from` of a mount, as far as it may pull that: what it calls so on the way by which
    /// it came, or `<repository>/<image>`.
    pub(super) fn pulled_from(&self, name: &str) -> impl Iterator<Item = (Repository, ImageName)> {
        let pulled = self.called(name).filter(|(repository, image)| self.pulls(repository, image, name));
        pulled.map(|(repository, image)| (repository.clone(), image))
    }

    /// What the client may mean by a name, whether or not it may pull that.
    fn called(&self, name: &str) -> impl Iterator<Item = (&Repository, ImageName)> {
        let here = meant(self.current, service(self.route), name);
        let elsewhere = meant(self.current, SHARED_SERVICE, name).filter(|_| !self.route.shared);
        here.into_iter().chain(elsewhere)
    }

    /// Images that the client may pull and that may have a blob which it wants for an image of `hosted`, that one and its
    /// repository first. What a closed one is called in a token: its name here, or `<repository>/<image>`.
    pub(super) async fn holders_of(
        &self,
        digest: &Digest,
        hosted: &Repository,
        wanted: &ImageName,
    ) -> Vec<(Repository, ImageName)> {
        let others = self.current.repositories().filter(|other| other.name() != hosted.name());
        let mut found = Vec::new();
        for repository in std::iter::once(hosted).chain(others) {
            let is_target = repository.name() == hosted.name();
            let known = repository.holders_of(digest, wanted).await.unwrap_or_default();
            for image in is_target.then(|| wanted.clone()).into_iter().chain(known) {
                let called =
                    if is_target { written(self.route, &image) } else { format!("{}/{image}", repository.name()) };
                if self.pulls(repository, &image, &called) {
                    found.push((repository.clone(), image));
                }
            }
        }
        found
    }

    /// Whether the client may pull an image that it calls so. A token must be for it too.
    fn pulls(&self, repository: &Repository, image: &ImageName, called: &str) -> bool {
        self.pull(repository, image, called) == Verdict::Allow
    }

    fn pull(&self, repository: &Repository, image: &ImageName, called: &str) -> Verdict {
        let known = repository.named(image);
        let services = [service(self.route)];
        let asked = Asked { action: Action::Pull, image: Some(&known), written: Some(called), services: &services };
        let permissions = &self.current.settings.server.auth.permissions;
        judge(permissions, &target(repository), &self.caller, &asked)
    }
}

/// A repository, as far as it matters for access.
pub(super) fn target(repository: &Repository) -> Target<'_> {
    let (kind, anonymous_pull) = match repository {
        Repository::Leaf(Leaf::Mirror(mirror)) => (Kind::Mirror, mirror.settings().anonymous_pull),
        Repository::Leaf(Leaf::Hosted(hosted)) => (Kind::Hosted, hosted.settings().anonymous_pull),
        Repository::Group(group) => {
            (Kind::Group { push_to: group.settings().push_to.as_ref() }, group.settings().anonymous_pull)
        }
    };
    Target { name: repository.name(), kind, anonymous_pull }
}

/// The service whose tokens count on a way. On the way that all repositories share it is one for all of them: an engine asks
/// `/v2/` once, and fetches tokens for every image from the service that it was told there.
pub(super) fn service(route: &Route) -> &str {
    if route.shared { SHARED_SERVICE } else { route.repository.as_str() }
}

/// An image's name as the client writes it: with the repository or registry in front, where that is part of it.
fn written(route: &Route, image: &ImageName) -> String {
    if route.whole_path {
        return image.as_str().to_owned();
    }
    let first = route.prefix.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    format!("{}/{image}", first.replace("%3A", ":").replace("%3a", ":"))
}

/// What a client that fetches tokens of a service means by a name.
pub(super) fn meant<'a>(current: &'a Current, service: &str, name: &str) -> Option<(&'a Repository, ImageName)> {
    if service != SHARED_SERVICE {
        return Some((current.repository(&service.parse().ok()?)?, name.parse().ok()?));
    }
    let path = format!("/v2/{name}/{TOKEN}");
    let Ok(Resolved::To(route)) =
        current.routing.resolve(&routing::Request { path: &path, ..routing::Request::default() })
    else {
        return None;
    };
    let image = route.rest.strip_suffix(TOKEN)?.strip_suffix('/')?.parse().ok()?;
    Some((current.repository(&route.repository)?, image))
}
