//! What all databases have in common: values, rows, a session that runs statements, and text of statements.

use std::future::Future;

use rust_decimal::Decimal;

use crate::catalog::CatalogError;
use crate::catalog::model::PRICE_SCALE;

/// How a database writes what the standard leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Sqlite,
    Postgres,
    MySql,
}

/// A value of a statement or a row.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Int(i64),
    Text(String),
    Price(Decimal),
}

impl Value {
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    pub fn whole(n: u64) -> Self {
        Self::Int(i64::try_from(n).unwrap_or(i64::MAX))
    }
}

/// A row, whose values are taken out.
pub(super) struct Row(pub Vec<Value>);

impl Row {
    fn take(&mut self, at: usize) -> Value {
        self.0.get_mut(at).map_or(Value::Null, |value| std::mem::replace(value, Value::Null))
    }

    pub fn text(&mut self, at: usize) -> Result<String, CatalogError> {
        self.optional(at)?.ok_or(CatalogError::Corrupt("a text is missing"))
    }

    pub fn optional(&mut self, at: usize) -> Result<Option<String>, CatalogError> {
        match self.take(at) {
            Value::Text(text) => Ok(Some(text)),
            Value::Null => Ok(None),
            _ => Err(CatalogError::Corrupt("a text is none")),
        }
    }

    pub fn int(&mut self, at: usize) -> Result<i64, CatalogError> {
        match self.take(at) {
            Value::Int(n) => Ok(n),
            _ => Err(CatalogError::Corrupt("a number is none")),
        }
    }

    pub fn whole(&mut self, at: usize) -> Result<u64, CatalogError> {
        u64::try_from(self.int(at)?).map_err(|_| CatalogError::Corrupt("a number is negative"))
    }

    pub fn price(&mut self, at: usize) -> Result<Decimal, CatalogError> {
        let price = match self.take(at) {
            Value::Price(price) => price,
            // SQLite has ten-thousandths; MySQL sends decimals as text.
            Value::Int(n) => Decimal::new(n, PRICE_SCALE),
            Value::Text(text) => {
                Decimal::from_str_exact(&text).map_err(|_| CatalogError::Corrupt("a price is none"))?
            }
            Value::Null => return Err(CatalogError::Corrupt("a price is missing")),
        };
        Ok(crate::catalog::model::shown(price))
    }
}

/// A connection that is ours for a while. Statements hold their values as `?`, and are prepared once a connection.
pub(super) trait Session: Send {
    const DIALECT: Dialect;

    /// Runs a statement; one that only writes gives no rows.
    fn rows<'a>(
        &'a mut self,
        sql: &'a str,
        values: Vec<Value>,
    ) -> impl Future<Output = Result<Vec<Row>, CatalogError>> + Send + 'a;

    /// Begins a transaction that will write.
    fn begin(&mut self) -> impl Future<Output = Result<(), CatalogError>> + Send;

    /// Ends it with success.
    fn commit(&mut self) -> impl Future<Output = Result<(), CatalogError>> + Send;

    /// Takes it back.
    fn rollback(&mut self) -> impl Future<Output = Result<(), CatalogError>> + Send;
}

/// Ends a transaction the way its work went.
pub(super) async fn end<S: Session, T: Send>(s: &mut S, done: Result<T, CatalogError>) -> Result<T, CatalogError> {
    match done {
        Ok(done) => s.commit().await.map(|()| done),
        Err(error) => {
            // What cannot be taken back now is taken back when the connection is thrown away.
            let _ = s.rollback().await;
            Err(error)
        }
    }
}

/// A statement that grows.
#[derive(Clone, Debug, Default)]
pub(super) struct Sql {
    pub text: String,
    pub values: Vec<Value>,
}

impl Sql {
    pub fn new(text: &str) -> Self {
        Self { text: text.to_owned(), values: Vec::new() }
    }

    pub fn add(&mut self, text: &str, values: impl IntoIterator<Item = Value>) -> &mut Self {
        self.text.push_str(text);
        self.values.extend(values);
        self
    }

    pub async fn run<S: Session>(self, s: &mut S) -> Result<Vec<Row>, CatalogError> {
        s.rows(&self.text, self.values).await
    }
}

/// `?` for each value of a list; the list is filled up with its last to one of few lengths, so that few statements are
/// prepared.
pub(super) fn list(values: &[impl AsRef<str>]) -> (String, Vec<Value>) {
    let length = values.len().next_power_of_two();
    let last = values.last();
    let filled = values.iter().chain(std::iter::repeat_n(last, length - values.len()).flatten());
    let filled: Vec<Value> = filled.map(|value| Value::text(value.as_ref())).collect();
    (marks(filled.len()), filled)
}

fn marks(n: usize) -> String {
    let mut text = String::with_capacity(2 * n);
    for at in 0..n {
        text.push_str(if at == 0 { "?" } else { ",?" });
    }
    text
}

/// Inserts rows, up to 64 in a statement, in few different lengths. `behind` is what follows the values.
pub(super) async fn insert<S: Session>(
    s: &mut S,
    into: &str,
    width: usize,
    rows: Vec<Vec<Value>>,
    behind: &str,
) -> Result<(), CatalogError> {
    let mut rows = rows.into_iter();
    while rows.len() > 0 {
        // The largest power of two that is left, 64 at most.
        let take = 1 << rows.len().min(64).ilog2();
        let row = format!("({})", marks(width));
        let text = format!("INSERT INTO {into} VALUES {}{behind}", vec![row.as_str(); take].join(","));
        let values = rows.by_ref().take(take).flatten().collect();
        s.rows(&text, values).await?;
    }
    Ok(())
}
