//! Which route a request takes: a tree of path segments for each host.
//!
//! Which of the routes that match wins does not depend on the request (see [`RouteOptions`]), so each has a fixed rank, and
//! the one with the lowest is looked for. Hosts are tried from the most specific on; within one, the tree is walked along
//! the path's segments, which does not take longer the more routes there are beside it.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::net::Ipv6Addr;
use std::str::FromStr;

use hashbrown::HashMap;
use hyper::Method;
use hyper::header::{HeaderMap, HeaderName};

use super::options::{PathMatch, Rewrite, RouteOptions};
use super::path::{CanonicalPath, canonical};

/// All routes, ready to be searched.
#[derive(Debug)]
pub struct Router {
    routes: Vec<Route>,
    exact: HashMap<String, Tree>,
    /// By what stands behind `*.`.
    suffixes: HashMap<String, Tree>,
    any: Tree,
}

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
pub enum Match<'p> {
    /// Along this route.
    Found(Found<'p>),
    /// There are routes for this host and path, but for these methods only, sorted.
    MethodNotAllowed(Vec<Method>),
    /// Nowhere.
    NotFound,
}

/// A route that was found.
#[derive(Debug, PartialEq, Eq)]
pub struct Found<'p> {
    /// Its place among the options.
    pub route: usize,
    /// What the pattern's names stand for, in their order in it.
    pub captures: Vec<&'p str>,
    /// What the upstream is asked for.
    pub path: CanonicalPath<'p>,
}

impl Router {
    /// Routes as they are configured. One whose pattern cannot be read is never found; `config` lets none through.
    pub fn new(options: &[RouteOptions]) -> Self {
        let read = options.iter().enumerate().filter_map(|(index, options)| Route::new(index, options));
        let mut routes: Vec<Route> = read.collect();
        routes.sort_by_key(Route::precedence);
        let mut router =
            Self { routes: Vec::new(), exact: HashMap::new(), suffixes: HashMap::new(), any: Tree::default() };
        for (rank, route) in routes.iter().enumerate() {
            let tree = match &route.host {
                Host::Exact(name) => router.exact.entry(name.clone()).or_default(),
                Host::Suffix(name) => router.suffixes.entry(name.clone()).or_default(),
                Host::Any => &mut router.any,
            };
            tree.insert(route, rank);
        }
        router.routes = routes;
        router
    }

    /// The route of a request. `host` is as it was sent; one that makes no sense is taken as none.
    pub fn find<'p>(
        &self,
        host: Option<&str>,
        path: &'p CanonicalPath<'_>,
        method: &Method,
        headers: &HeaderMap,
    ) -> Match<'p> {
        let host = host.and_then(self::host);
        let path = path.as_str();
        let mut search = Search { routes: &self.routes, method, headers, best: None, methods: Vec::new() };
        if let Some(host) = host.as_deref() {
            if let Some(tree) = self.exact.get(host) {
                tree.search(path, &mut search);
            }
            let mut rest = host;
            while search.best.is_none() && !self.suffixes.is_empty() {
                let Some((_, suffix)) = rest.split_once('.') else { break };
                if let Some(tree) = self.suffixes.get(suffix) {
                    tree.search(path, &mut search);
                }
                rest = suffix;
            }
        }
        if search.best.is_none() {
            self.any.search(path, &mut search);
        }
        match search.best.and_then(|rank| self.routes.get(rank)) {
            Some(route) => Match::Found(route.found(path)),
            None if search.methods.is_empty() => Match::NotFound,
            None => {
                search.methods.sort_by(|a, b| a.as_str().cmp(b.as_str()));
                search.methods.dedup();
                Match::MethodNotAllowed(search.methods)
            }
        }
    }
}

/// A host as routes are compared with: lower case, without port and the root's dot; `None` for what is none. An IPv6
/// address is in brackets and in its shortest form.
pub fn host(authority: &str) -> Option<Cow<'_, str>> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        let address: Ipv6Addr = address.parse().ok()?;
        return (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
            .then(|| Cow::Owned(format!("[{address}]")));
    }
    let name = match authority.split_once(':') {
        Some((name, port)) if is_port(port) => name,
        Some(_) => return None,
        None => authority,
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > 253 || !name.bytes().all(allowed) || name.split('.').any(str::is_empty) {
        return None;
    }
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Some(Cow::Owned(name.to_ascii_lowercase()));
    }
    Some(Cow::Borrowed(name))
}

/// The port that an authority names.
pub fn port(authority: &str) -> Option<u16> {
    let (_, port) = authority.rsplit_once(':').filter(|(_, port)| is_port(port))?;
    port.parse().ok()
}

/// A port may be empty: RFC 3986, 3.2.3.
fn is_port(text: &str) -> bool {
    text.is_empty() || (text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok())
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Exact(String),
    Suffix(String),
    Any,
}

/// A route, as it is searched for.
#[derive(Clone, Debug)]
struct Route {
    index: usize,
    host: Host,
    path: Path,
    methods: Vec<Method>,
    headers: Vec<(HeaderName, Option<String>)>,
    rewrite: To,
}

#[derive(Clone, Debug)]
enum Path {
    /// Without the slash at its end: empty is all paths.
    Prefix(String),
    Pattern(Pattern),
}

#[derive(Clone, Debug)]
enum To {
    Keep,
    /// In place of the prefix, without the slash at its end.
    Prefix(String),
    Pattern(Vec<Piece>),
}

#[derive(Clone, Debug)]
enum Piece {
    Text(String),
    Capture(usize),
}

impl Route {
    fn new(index: usize, options: &RouteOptions) -> Option<Self> {
        let path = match &options.path {
            PathMatch::Prefix(prefix) => Path::Prefix(prefix.strip_suffix('/').unwrap_or(prefix).to_owned()),
            PathMatch::Pattern(pattern) => Path::Pattern(pattern.parse().ok()?),
        };
        let rewrite = match (&options.rewrite, &path) {
            (Rewrite::Keep, _) => To::Keep,
            (Rewrite::Prefix(to), _) => To::Prefix(to.strip_suffix('/').unwrap_or(to).to_owned()),
            (Rewrite::Pattern(to), Path::Pattern(from)) => To::Pattern(from.rewritten(&to.parse().ok()?).ok()?),
            (Rewrite::Pattern(_), Path::Prefix(_)) => return None,
        };
        let header = |(name, value): &(String, Option<String>)| {
            Some((HeaderName::from_bytes(name.as_bytes()).ok()?, value.clone()))
        };
        Some(Self {
            index,
            host: match options.host.as_deref() {
                None => Host::Any,
                Some(name) => match name.strip_prefix("*.") {
                    Some(suffix) => Host::Suffix(suffix.to_owned()),
                    None => Host::Exact(name.to_owned()),
                },
            },
            path,
            methods: options.methods.iter().map(|m| Method::from_bytes(m.as_bytes()).ok()).collect::<Option<_>>()?,
            headers: options.headers.iter().map(header).collect::<Option<_>>()?,
            rewrite,
        })
    }

    /// What comes first, wins.
    fn precedence(&self) -> impl Ord + use<> {
        let host = match &self.host {
            Host::Exact(_) => (0, Reverse(0)),
            Host::Suffix(name) => (1, Reverse(name.len())),
            Host::Any => (2, Reverse(0)),
        };
        let (literal, open) = match &self.path {
            Path::Prefix(prefix) => (prefix.len(), true),
            Path::Pattern(pattern) => (pattern.literal(), pattern.is_open()),
        };
        (host, Reverse(literal), open, self.methods.is_empty(), Reverse(self.headers.len()), self.index)
    }

    fn has_headers(&self, headers: &HeaderMap) -> bool {
        self.headers.iter().all(|(name, value)| match value {
            None => headers.contains_key(name),
            Some(value) => headers.get_all(name).iter().any(|sent| sent.as_bytes() == value.as_bytes()),
        })
    }

    /// Who may read a thing may ask for its head.
    fn takes(&self, method: &Method) -> bool {
        self.methods.is_empty()
            || self.methods.contains(method)
            || (method == Method::HEAD && self.methods.contains(&Method::GET))
    }

    fn found<'p>(&self, path: &'p str) -> Found<'p> {
        let captures = match &self.path {
            Path::Prefix(_) => Vec::new(),
            Path::Pattern(pattern) => pattern.captures(path),
        };
        let rewritten = match &self.rewrite {
            To::Keep => Cow::Borrowed(path),
            To::Prefix(to) => {
                let from = match &self.path {
                    Path::Prefix(prefix) => prefix.len(),
                    Path::Pattern(_) => 0,
                };
                let rest = path.get(from..).unwrap_or_default();
                match (to.is_empty(), rest.is_empty()) {
                    (true, true) => Cow::Borrowed("/"),
                    (true, false) => Cow::Borrowed(rest),
                    (false, _) => Cow::Owned([to, rest].concat()),
                }
            }
            To::Pattern(pieces) => {
                let piece = |piece: &Piece| match piece {
                    Piece::Text(text) => text.clone(),
                    Piece::Capture(index) => captures.get(*index).copied().unwrap_or_default().to_owned(),
                };
                Cow::Owned(pieces.iter().map(piece).collect())
            }
        };
        Found { route: self.index, captures, path: CanonicalPath::of_parts(rewritten) }
    }
}

/// A pattern of a path: segments that are literal, `{name}` for any one, or `{*name}` at the end for all the rest, which
/// may be empty. It is closed by a slash or not, as the path must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Vec<Segment>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    /// The empty one is the slash at the end.
    Literal(String),
    One(String),
    Rest(String),
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let inner = text.strip_prefix('/').ok_or_else(|| format!("`{text}` must begin with a slash"))?;
        let mut segments: Vec<Segment> = Vec::new();
        let count = inner.split('/').count();
        for (number, part) in inner.split('/').enumerate() {
            let segment = match part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
                Some(name) => match name.strip_prefix('*') {
                    Some(_) if number + 1 < count => {
                        return Err(format!("`{part}` takes all the rest, so it must be the last segment"));
                    }
                    Some(name) => Segment::Rest(name.to_owned()),
                    None => Segment::One(name.to_owned()),
                },
                None => Segment::Literal(part.to_owned()),
            };
            match &segment {
                Segment::Literal(part) => {
                    let path = format!("/{part}");
                    let form = canonical(&path).map_err(|error| format!("`{text}`: {error}"))?;
                    if part.contains(['{', '}']) {
                        return Err(format!("`{part}` must be one name in braces, or none"));
                    }
                    if (part.is_empty() && number + 1 < count) || form.as_str() != path {
                        return Err(format!("`{text}` is not how a path arrives here; write `{form}` for `{path}`"));
                    }
                }
                Segment::One(name) | Segment::Rest(name) => {
                    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
                    if name.is_empty() || !name.bytes().all(plain) {
                        return Err(format!("`{part}` must have a name of A-Z a-z 0-9 _"));
                    }
                    if segments.iter().any(|other| other.name() == Some(name)) {
                        return Err(format!("`{name}` is there twice"));
                    }
                }
            }
            segments.push(segment);
        }
        Ok(Self(segments))
    }
}

impl Segment {
    fn name(&self) -> Option<&str> {
        match self {
            Segment::Literal(_) => None,
            Segment::One(name) | Segment::Rest(name) => Some(name),
        }
    }
}

impl Pattern {
    /// Whether `to` can be put together of what this pattern stands for.
    pub fn check_rewrite(&self, to: &Pattern) -> Result<(), String> {
        self.rewritten(to).map(|_| ())
    }

    fn rewritten(&self, to: &Pattern) -> Result<Vec<Piece>, String> {
        let names: Vec<&Segment> = self.0.iter().filter(|segment| segment.name().is_some()).collect();
        let mut pieces = Vec::new();
        for segment in &to.0 {
            pieces.push(Piece::Text(String::from("/")));
            pieces.push(match segment {
                Segment::Literal(text) => Piece::Text(text.clone()),
                // One stands for one, and the rest for the rest: so no path gains segments, or a slash in a wrong place.
                name => {
                    Piece::Capture(names.iter().position(|known| *known == name).ok_or_else(|| {
                        format!("the pattern has no `{}` of this kind", name.name().unwrap_or_default())
                    })?)
                }
            });
        }
        Ok(pieces)
    }

    /// Characters that are not free, without the slash at the end.
    fn literal(&self) -> usize {
        let segments = self.0.iter().map(|segment| match segment {
            Segment::Literal(text) if text.is_empty() => 0,
            Segment::Literal(text) => text.len() + 1,
            Segment::One(_) => 1,
            Segment::Rest(_) => 0,
        });
        segments.sum()
    }

    fn is_open(&self) -> bool {
        matches!(self.0.last(), Some(Segment::Rest(_)))
    }

    /// What the names stand for in a path that matches.
    fn captures<'p>(&self, path: &'p str) -> Vec<&'p str> {
        let mut rest = path;
        let mut found = Vec::new();
        for segment in &self.0 {
            let (part, behind) = first(rest).unwrap_or_default();
            match segment {
                Segment::Literal(_) => {}
                Segment::One(_) => found.push(part),
                Segment::Rest(_) => found.push(rest.get(1..).unwrap_or_default()),
            }
            rest = behind;
        }
        found
    }
}

/// The first segment, and what is behind it: `a` and `/b` of `/a/b`.
fn first(path: &str) -> Option<(&str, &str)> {
    let inner = path.strip_prefix('/')?;
    Some(inner.split_at(inner.find('/').unwrap_or(inner.len())))
}

/// The routes of one host, by the segments of their paths. Lists are of ranks, lowest first.
#[derive(Debug, Default)]
struct Tree {
    literals: HashMap<String, Tree>,
    one: Option<Box<Tree>>,
    /// Patterns that end here.
    here: Vec<usize>,
    /// Prefixes that end here.
    below: Vec<usize>,
    /// Patterns whose rest begins behind the slash that follows.
    rest: Vec<usize>,
}

impl Tree {
    fn insert(&mut self, route: &Route, rank: usize) {
        let mut node = self;
        match &route.path {
            Path::Prefix(prefix) => {
                for part in prefix.split('/').skip(1) {
                    node = node.literals.entry(part.to_owned()).or_default();
                }
                node.below.push(rank);
            }
            Path::Pattern(pattern) => {
                for segment in &pattern.0 {
                    node = match segment {
                        Segment::Literal(part) => node.literals.entry(part.clone()).or_default(),
                        Segment::One(_) => node.one.get_or_insert_default(),
                        Segment::Rest(_) => return node.rest.push(rank),
                    };
                }
                node.here.push(rank);
            }
        }
    }

    fn search(&self, path: &str, search: &mut Search<'_>) {
        search.try_all(&self.below);
        let Some((part, behind)) = first(path) else { return search.try_all(&self.here) };
        search.try_all(&self.rest);
        if let Some(next) = self.literals.get(part) {
            next.search(behind, search);
        }
        if let Some(next) = self.one.as_ref().filter(|_| !part.is_empty()) {
            next.search(behind, search);
        }
    }
}

/// A search under way.
struct Search<'a> {
    routes: &'a [Route],
    method: &'a Method,
    headers: &'a HeaderMap,
    best: Option<usize>,
    /// Of routes that are for other methods.
    methods: Vec<Method>,
}

impl Search<'_> {
    fn try_all(&mut self, ranks: &[usize]) {
        for &rank in ranks.iter().take_while(|rank| self.best.is_none_or(|best| **rank < best)) {
            let Some(route) = self.routes.get(rank).filter(|route| route.has_headers(self.headers)) else { continue };
            if route.takes(self.method) {
                self.best = Some(rank);
                return;
            }
            self.methods.extend(route.methods.iter().cloned());
            if route.methods.contains(&Method::GET) {
                self.methods.push(Method::HEAD);
            }
        }
    }
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
