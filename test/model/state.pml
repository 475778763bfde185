/*
 * state.pml: the state of an entry, the stamp of a flush, and the map of pending
 * entries.
 *
 * Verifies count.  Two flushes write the counts.  A flush may end at any step,
 * and its transaction may be rolled back.
 */
#define VERIFIES 3
#define FLUSHES 2
#define MIN(a, b) ((a) < (b) -> (a) : (b))

#define CLEAN 0
#define DIRTY 1
#define STAMP (2 + _pid)

/* The entry, and its bit in the map. */
byte count;
byte known;
byte state = CLEAN;
bool pending;

byte table;						/* committed */
bool locked;					/* the lock of flushes */
byte ended;						/* verifies and flushes */

/* usage_hash_set_dirty(); the barrier before the read is the order of steps. */
inline set_dirty()
{
	if
	:: state != DIRTY ->
		atomic { old = state; state = DIRTY }
		if
		:: old == CLEAN -> pending = true
		:: else
		fi;
		old = 0
	:: else
	fi
}

/* usage_hash_set_stamp() */
inline set_stamp()
{
	atomic {
		is_stamped = false;
		if
#ifndef MUTANT_STAMP_CLEAN
		:: state == CLEAN -> skip
#endif
		:: else -> state = STAMP; is_stamped = true
		fi
	}
}

/* usage_hash_set_clean() */
inline set_clean()
{
	atomic {
		if
#ifndef MUTANT_NO_COMPARE
		:: state != STAMP -> goto cleaned
#endif
		:: else -> state = CLEAN
		fi
	}
#ifdef MUTANT_NO_LOOK_AGAIN
	if
	:: state == CLEAN -> pending = false
	:: else
	fi;
#else
	pending = false;
	if
	:: state != CLEAN -> pending = true
	:: else
	fi;
#endif
cleaned:
}

/* usage_take(): usage_copy_entry() works under the entry's spinlock. */
inline copy_and_take()
{
	atomic { copied = count; known0 = known; known = count }
}

/*
 * usage_pending() and usage_flush_here().  The flush may end early, by an error,
 * a cancel or the end of its process.
 */
inline flush()
{
	if
	:: pending
	:: else -> goto done
	fi;
	set_stamp();
	if
	:: is_stamped
	:: else -> goto done
	fi;
	if
	:: true
	:: goto done
	fi;
	/* It does not wait for another flush. */
	atomic {
		if
		:: !locked -> locked = true
		:: else -> goto done
		fi
	}
#ifdef MUTANT_COPY_FIRST
	copy_and_take();
	set_stamp();
#else
	set_stamp();
	if
	:: is_stamped -> copy_and_take()
	:: else -> locked = false; goto done
	fi;
#endif
	if
	:: true ->
		/* usage_give_back() */
		known = known - (copied - known0);
		/* set_dirty(); its bit is still there */
		assert(state != CLEAN);
		state = DIRTY
	:: true ->
		/* the commit; then usage_settle(), before the lock is released */
		atomic {
			table = table + copied - MIN(known0, table);
			assert(table <= count)
		}
		set_clean()
	fi;
	locked = false
done:
	skip
}

active [VERIFIES] proctype verify()
{
	byte old;

#ifdef MUTANT_DIRTY_FIRST
	set_dirty();
	count++;
#else
	count++;
	set_dirty();
#endif
	ended++
}

active [FLUSHES] proctype flusher()
{
	byte copied, known0;
	bool is_stamped;

	flush();
	ended++
}

/* Whoever looks while nothing runs. */
active proctype last()
{
	ended == VERIFIES + FLUSHES;
	assert(state != CLEAN || table == count);
	/* A bit too many only costs a look. */
	assert(state == CLEAN || pending);
	/* What the next flush writes */
	assert(table + count - MIN(known, table) == count)
}
