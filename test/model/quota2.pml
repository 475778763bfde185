/*
 * quota2.pml: a quota on a primary and on its standby, and the promotion.
 *
 * Each server admits units by its own entry.  The primary flushes to its table.
 * The standby sends its units in a numbered batch, and answers get lost.
 * Replication lags.  At any moment the primary is gone, and the standby is
 * promoted.
 */
#define UNITS 2
#define CALLS 2
#define SENDS 2
#define FLUSHES 2
#define MIN(a, b) ((a) < (b) -> (a) : (b))
#define MAX(a, b) ((a) > (b) -> (a) : (b))

/* The servers. */
#define P 0
#define S 1

mtype = { CLEAN, STAMPED, DIRTY };

/* The entries. */
byte used[2];
byte reserved[2];
byte known[2];
mtype state = CLEAN;			/* of the standby's entry */
bool is_made;					/* the standby's entry, at its first use */

/* The counts that a flush, or the outbox, has taken; then the answer. */
byte copied[2];
byte known0[2];
byte answered[2];				/* the table's units */
bool is_full;					/* the outbox */
byte batch;

/* The table that flushes write, and usage_senders; then of the replica. */
byte table;
byte noted;
byte replica;
byte replica_noted;
bool is_locked;					/* the primary's lock of flushes */
bool is_promoted;
bool is_told;					/* usage_note_recovery() has run */

/* Of the check. */
byte admitted[2];				/* units of committed work, by each server */
byte seen[2];					/* of the other server's: what the entry has */
byte in_table[2];				/* of each server's: what the table has */
byte replica_in_table[2];
byte copied_own[2];
byte answered_other[2];
byte replayed;					/* of the primary's: what it left at the promotion */
byte ended;

#define ALIVE(me) (me == S || !is_promoted)

inline take(me)
{
	copied[me] = used[me];
	known0[me] = known[me];
	copied_own[me] = admitted[me];
	known[me] = used[me]
}

/* write_quotas(), committed */
inline write_units(me)
{
#ifndef MUTANT_NO_MIN
	table = table + copied[me] - MIN(known0[me], table);
#else
	table = table + copied[me] - known0[me];
#endif
	in_table[me] = copied_own[me];
	in_table[1 - me] = MAX(in_table[1 - me], seen[me]);
	answered[me] = table;
	answered_other[me] = in_table[1 - me];
	assert(table <= admitted[P] + admitted[S])
}

inline forget(me)
{
	copied[me] = 0;
	known0[me] = 0;
	copied_own[me] = 0;
	answered[me] = 0;
	answered_other[me] = 0
}

/* usage_settle(), without the state */
inline settle(me)
{
	if
#ifndef MUTANT_NO_COMPARE
	:: known[me] == copied[me] ->
#else
	:: true ->
#endif
		used[me] = used[me] + MAX(answered[me], copied[me]) - copied[me];
		known[me] = known[me] + MAX(answered[me], copied[me]) - copied[me]
	:: else
	fi;
	seen[me] = MAX(seen[me], answered_other[me]);
	forget(me)
}

inline set_clean()
{
	if
	:: state == STAMPED -> state = CLEAN
	:: else
	fi
}

inline give_back(me)
{
	known[me] = known[me] - (copied[me] - known0[me]);
	forget(me)
}

/* follow(): raise an entry to what the standby's batch left in the table. */
inline follow(me, units)
{
#ifndef MUTANT_NO_FOLLOW
	used[me] = used[me] + MAX(answered[S], known[me]) - known[me];
	known[me] = MAX(answered[S], known[me]);
#endif
	seen[me] = MAX(seen[me], units)
}

/* receive(): the batch, unless its number was written. */
inline receive()
{
	if
	:: noted >= batch ->
		answered[S] = table;
		answered_other[S] = in_table[P];
		is_new = false
	:: else ->
		write_units(S);
#ifndef MUTANT_NO_NOTE
		noted = batch;
#endif
		is_new = true
	fi
}

/* One session on each server: their processes are the first. */
active [2] proctype session()
{
	byte calls;

	do
	:: atomic {
		/* read_units(): from the replica, or after the promotion from the table */
		_pid == S && !is_made ->
			is_made = true;
			used[S] = replica;
			known[S] = replica;
			seen[S] = replica_in_table[P]
		}
	:: atomic {
		calls < CALLS && (_pid == P || is_made) && ALIVE(_pid) && used[_pid] + reserved[_pid] + 1 <= UNITS ->
			calls++;
			reserved[_pid]++;
			/* More than the quota only by what the other counted since. */
			assert(admitted[P] + admitted[S] + reserved[_pid] <= UNITS + admitted[1 - _pid] - seen[_pid])
		}
		if
		:: atomic {
			/* COMMIT settles */
			ALIVE(_pid) ->
				reserved[_pid]--;
				used[_pid]++;
				admitted[_pid]++;
				if
				:: _pid == S -> state = DIRTY
				:: else
				fi
			}
		:: atomic { ALIVE(_pid) -> reserved[_pid]-- }
		:: !ALIVE(_pid)
		fi
	:: else -> break
	od;
	ended++
}

/* usage_flush_here() on the primary */
active proctype flusher()
{
	byte flushes;

	do
	:: atomic {
		!is_promoted && !is_locked && used[P] > known[P] && flushes < FLUSHES ->
			flushes++;
			is_locked = true;
			take(P)
		}
		if
		:: atomic { !is_promoted -> write_units(P) }
			if
			:: atomic { !is_promoted -> settle(P); is_locked = false }
			:: is_promoted
			fi
		:: atomic { !is_promoted -> give_back(P); is_locked = false }
		:: is_promoted
		fi
	:: is_promoted -> break
	od
}

/* A flush worker of the standby, which is promoted later */
active proctype worker()
{
	byte sends;
	byte flushes;
	bool is_new;

	do
	:: !is_promoted && sends < SENDS && (is_full || state != CLEAN) ->
		sends++;
		atomic {
			if
			:: !is_full -> is_full = true; batch++; state = STAMPED; take(S)
			:: else
			fi
		}
		if
		:: atomic {
			!is_promoted &&
#ifndef MUTANT_NO_LOCK
			!is_locked &&
#endif
			true ->
				receive();
				is_locked = true
			}
			if
			:: atomic {
				!is_promoted ->
					if
					:: is_new -> follow(P, copied_own[S])
					:: else
					fi;
					is_locked = false
				}
			:: is_promoted
			fi;
			if
			:: atomic { true -> settle(S); is_full = false; set_clean() }
			:: true		/* the answer is lost */
			fi
		:: true			/* the batch is lost */
		fi;
		is_new = false

	:: is_promoted && is_full ->
		/* usage_deliver() */
		atomic { receive() }
		atomic {
			if
			:: is_new -> follow(S, answered_other[S])
			:: else
			fi
		}
		if
		:: atomic { true -> settle(S); is_full = false; set_clean() }
		:: flushes < FLUSHES -> flushes++	/* the worker ends: once more */
		fi;
		is_new = false

	:: is_promoted && !is_full && state != CLEAN && flushes < FLUSHES ->
		flushes++;
		atomic { state = STAMPED; take(S) }
		if
		:: atomic { true -> write_units(S) }
			atomic { settle(S); set_clean() }
		:: atomic { true -> give_back(S); state = DIRTY }
		fi

	:: is_told && !is_full && ended == 2 -> break
	od;

	/* When all is over: the last flush */
	atomic {
		if
		:: state != CLEAN -> take(S); write_units(S); settle(S)
		:: else
		fi;
		assert(reserved[S] == 0);
		assert(used[S] == table);
		assert(table == admitted[S] + MAX(seen[S], replayed))
	}
}

active proctype promotion()
{
	atomic {
		/* No unit is missing that no server has still to write. */
		assert(used[P] > known[P] || copied[P] > 0 || is_full || state != CLEAN || table == admitted[P] + admitted[S]);
		is_promoted = true;
		table = replica;
		noted = replica_noted;
		in_table[P] = replica_in_table[P];
		in_table[S] = replica_in_table[S];
		replayed = replica_in_table[P];
		is_locked = false;
		forget(P)
	}
	atomic {
		/* usage_note_recovery() */
#ifndef MUTANT_STAYS_CLEAN
		if
		:: is_made -> state = DIRTY
		:: else
		fi;
#endif
		is_told = true
	}
}

active proctype replication()
{
	do
	:: atomic {
		!is_promoted && (replica != table || replica_noted != noted) ->
			replica = table;
			replica_noted = noted;
			replica_in_table[P] = in_table[P];
			replica_in_table[S] = in_table[S]
		}
	:: is_promoted -> break
	od
}
