-- What the scheduler needs of PostgreSQL as its store.

create sequence if not exists bridge.clock as bigint;
comment on sequence bridge.clock is 'The clock of stamps while PostgreSQL is primary: taken while the row is locked.';
