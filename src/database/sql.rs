//! What all databases have in common: values, rows, a session that runs statements, and text of statements.

use std::future::Future;

use rust_decimal::Decimal;

use super::{DatabaseError, Failure};

/// Places behind the point that a decimal has: SQLite has no exact decimals and counts ten-thousandths.
pub const SCALE: u32 = 4;

/// How a database writes what the standard leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// SQLite's.
    Sqlite,
    /// PostgreSQL's.
    Postgres,
    /// That of MySQL and MariaDB.
    MySql,
}

/// A value of a statement or a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// None.
    Null,
    /// A whole number.
    Int(i64),
    /// A text.
    Text(String),
    /// An exact decimal, of [`SCALE`] places.
    Decimal(Decimal),
}

impl Value {
    /// A text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// A number from 0.
    pub fn whole(n: u64) -> Self {
        Self::Int(i64::try_from(n).unwrap_or(i64::MAX))
    }
}

/// A row, whose values are taken out.
pub struct Row(pub(super) Vec<Value>);

impl Row {
    fn take(&mut self, at: usize) -> Value {
        self.0.get_mut(at).map_or(Value::Null, |value| std::mem::replace(value, Value::Null))
    }

    /// A text.
    ///
    /// # Errors
    /// When the value is none.
    pub fn text(&mut self, at: usize) -> Result<String, DatabaseError> {
        self.optional(at)?.ok_or(DatabaseError::Corrupt("a text is missing"))
    }

    /// A text, or nothing.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn optional(&mut self, at: usize) -> Result<Option<String>, DatabaseError> {
        match self.take(at) {
            Value::Text(text) => Ok(Some(text)),
            Value::Null => Ok(None),
            _ => Err(DatabaseError::Corrupt("a text is none")),
        }
    }

    /// A whole number.
    ///
    /// # Errors
    /// When the value is none.
    pub fn int(&mut self, at: usize) -> Result<i64, DatabaseError> {
        match self.take(at) {
            Value::Int(n) => Ok(n),
            _ => Err(DatabaseError::Corrupt("a number is none")),
        }
    }

    /// A whole number, or nothing.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn optional_int(&mut self, at: usize) -> Result<Option<i64>, DatabaseError> {
        match self.take(at) {
            Value::Int(n) => Ok(Some(n)),
            Value::Null => Ok(None),
            _ => Err(DatabaseError::Corrupt("a number is none")),
        }
    }

    /// A number from 0.
    ///
    /// # Errors
    /// When the value is none.
    pub fn whole(&mut self, at: usize) -> Result<u64, DatabaseError> {
        u64::try_from(self.int(at)?).map_err(|_| DatabaseError::Corrupt("a number is negative"))
    }

    /// An exact decimal.
    ///
    /// # Errors
    /// When the value is none.
    pub fn decimal(&mut self, at: usize) -> Result<Decimal, DatabaseError> {
        match self.take(at) {
            Value::Decimal(decimal) => Ok(decimal),
            // SQLite has ten-thousandths; MySQL sends decimals as text.
            Value::Int(n) => Ok(Decimal::new(n, SCALE)),
            Value::Text(text) => {
                Decimal::from_str_exact(&text).map_err(|_| DatabaseError::Corrupt("a decimal is none"))
            }
            Value::Null => Err(DatabaseError::Corrupt("a decimal is missing")),
        }
    }
}

/// A connection that is ours for a while. Statements hold their values as `?`, and are prepared once a connection.
pub trait Session: Send {
    /// Of its database.
    const DIALECT: Dialect;

    /// Runs a statement; one that only writes gives no rows.
    fn rows<'a>(
        &'a mut self,
        sql: &'a str,
        values: Vec<Value>,
    ) -> impl Future<Output = Result<Vec<Row>, DatabaseError>> + Send + 'a;

    /// Begins a transaction that will write.
    fn begin(&mut self) -> impl Future<Output = Result<(), DatabaseError>> + Send;

    /// Ends it with success.
    fn commit(&mut self) -> impl Future<Output = Result<(), DatabaseError>> + Send;

    /// Takes it back.
    fn rollback(&mut self) -> impl Future<Output = Result<(), DatabaseError>> + Send;
}

/// Ends a transaction the way its work went.
///
/// # Errors
/// That of the work, or of the end.
pub async fn end<S: Session, T: Send, E: Failure>(s: &mut S, done: Result<T, E>) -> Result<T, E> {
    match done {
        Ok(done) => Ok(s.commit().await.map(|()| done)?),
        Err(error) => {
            // What cannot be taken back now is taken back when the connection is thrown away.
            let _ = s.rollback().await;
            Err(error)
        }
    }
}

/// A statement that grows.
#[derive(Clone, Debug, Default)]
pub struct Sql {
    /// Its text so far.
    pub text: String,
    /// The values of its marks.
    pub values: Vec<Value>,
}

impl Sql {
    /// Begins with a text that has no marks.
    pub fn new(text: &str) -> Self {
        Self { text: text.to_owned(), values: Vec::new() }
    }

    /// Goes on with a text, and values for its marks.
    pub fn add(&mut self, text: &str, values: impl IntoIterator<Item = Value>) -> &mut Self {
        self.text.push_str(text);
        self.values.extend(values);
        self
    }

    /// Runs it.
    ///
    /// # Errors
    /// Those of the session.
    pub async fn run<S: Session>(self, s: &mut S) -> Result<Vec<Row>, DatabaseError> {
        s.rows(&self.text, self.values).await
    }
}

/// `?` for each value of a list; the list is filled up with its last to one of few lengths, so that few statements are
/// prepared.
pub fn list(values: &[impl AsRef<str>]) -> (String, Vec<Value>) {
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
///
/// # Errors
/// Those of the session.
pub async fn insert<S: Session>(
    s: &mut S,
    into: &str,
    width: usize,
    rows: Vec<Vec<Value>>,
    behind: &str,
) -> Result<(), DatabaseError> {
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
