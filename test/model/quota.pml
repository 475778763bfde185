/*
 * quota.pml: a quota in shared memory and in the table, on one server.
 *
 * Two sessions reserve a unit of a quota of two, and settle or return it.  The
 * flush writes the units to the table, and is rolled back.  The entry is removed
 * and made anew from the table.  The server crashes once.
 */
#define UNITS 2
#define SESSIONS 2
#define MIN(a, b) ((a) < (b) -> (a) : (b))

/* The entry; all of it under one spinlock. */
bool exists;
bool is_taken;					/* a flush has taken from it: not clean */
byte used;						/* settled, and what the table had; only grows */
byte reserved;
byte known;						/* of used: in the table, or taken by the flush */
byte removed;					/* entries that were removed */

byte table;

/* Of the check. */
byte done;						/* units of committed work */
byte lost;						/* of these, gone with a crash */
bool crashed;
byte boot;						/* a process of another boot is dead */
byte ended;

#define ALIVE (my_boot == boot)

/* find_or_make(): read the row, then add the entry, if none was removed meanwhile. */
inline make_entry()
{
	do
	:: atomic { ALIVE && exists -> break }
	:: atomic { ALIVE && !exists -> seed = table; removed0 = removed }
		atomic {
			if
			:: ALIVE &&
#ifndef MUTANT_SEED_OLD
			   removed == removed0 &&
#endif
			   !exists -> exists = true; used = seed; known = seed
			:: else
			fi
		}
	:: !ALIVE -> goto dead
	od
}

active [SESSIONS] proctype session()
{
	byte seed, removed0, my_boot, calls;

	do
	:: calls < 2 ->
		calls++;
		my_boot = boot;
		make_entry();
		atomic {
			if
			:: ALIVE && exists && used + reserved + 1 <= UNITS -> reserved++
			:: else -> goto dead		/* quota_exceeded */
			fi
		}
		if
		:: true -> atomic {
			/* COMMIT settles: the work is done */
			if
			:: ALIVE ->
				done++;
				assert(exists && reserved > 0);
				reserved--;
				used++;
				assert(done - lost <= UNITS)
			:: else
			fi
		   }
		:: true -> atomic {
			/* ROLLBACK, or a lost session */
			if
			:: ALIVE -> reserved--
			:: else
			fi
		   }
		fi;
dead:
		atomic { seed = 0; removed0 = 0; my_boot = 0 }
	:: else -> break
	od;
	ended++
}

/* usage_flush_here(): take, write, then settle or give back. */
active proctype flusher()
{
	byte copied, known0, my_boot, rounds;

	do
	:: rounds < 2 && exists ->
		rounds++;
		atomic {
			my_boot = boot;
			if
			:: exists ->
				known0 = known;
#ifdef MUTANT_FLUSH_RESERVED
				copied = used + reserved;
#else
				copied = used;
#endif
				known = copied;
				is_taken = true
			:: else -> goto end_round
			fi
		}
		if
		:: atomic {
			ALIVE ->
				/* the commit */
				table = table + copied - MIN(known0, table);
				assert(table <= done)
			}
			atomic {
				if
				:: ALIVE ->
					/* settled; alone, the table has no more than the copy */
					assert(exists && known == copied && table <= copied);
					is_taken = false
				:: else
				fi
			}
		:: atomic {
			ALIVE ->
				/* the rollback gives back */
#ifndef MUTANT_KNOWN_STAYS
				known = known - (copied - known0);
#endif
				is_taken = false
			}
		:: !ALIVE
		fi;
end_round:
		atomic { copied = 0; known0 = 0; my_boot = 0 }
	:: ended == SESSIONS -> break
	od;
	/* When all is over: the last flush */
	assert(reserved == 0);
	if
	:: exists ->
		assert(known <= used);
		table = table + used - MIN(known, table)
	:: else
	fi;
	assert(table == done - lost)
}

/* Room is made; a clean entry without reservations goes. */
active proctype evictor()
{
	byte times;

	do
	:: atomic {
		times < 2 && exists && used == known && !is_taken &&
#ifndef MUTANT_EVICT_RESERVED
		reserved == 0 &&
#endif
		true ->
			times++;
			exists = false;
			reserved = 0;
			used = 0;
			known = 0;
			removed++
		}
	:: ended == SESSIONS -> break
	od
}

/* The memory goes with a crash.  At most what no flush had committed is lost. */
active proctype crash()
{
	if
	:: atomic {
		!crashed && exists ->
		crashed = true;
		boot++;
		lost = done - table;
		exists = false;
		is_taken = false;
		used = 0;
		known = 0;
		reserved = 0;
		removed = 0
	}
	:: ended == SESSIONS
	fi
}
