/*
 * outbox.pml: batches of use from a standby to its primary.
 *
 * The standby counts uses and sends them.  Answers get lost, a batch may still be
 * on its way when it is sent again, and the primary refuses.  The standby may lose
 * its memory, and may be promoted with tables that lack the last commits.
 */
#define USES 2
#define SENDS 4
#define MIN(a, b) ((a) < (b) -> (a) : (b))
#define MAX(a, b) ((a) > (b) -> (a) : (b))

mtype = { NOTHING, WRITTEN, REFUSED };

/* The standby's entry and outbox. */
byte count;
byte known;
byte sender = 1;				/* 2: after its memory was lost */
byte batch;
bool is_full;
bool in_doubt;
byte copied;
byte known0;

/* Of the primary: the table, and usage_senders; then of the replica. */
byte table;
byte noted[3];
byte replica;
byte replica_noted[3];
bool is_promoted;

/* The connection that waits; an earlier one may still work. */
byte connection;
mtype answer = NOTHING;
byte answered;					/* the table's count */

/* Of the check. */
byte uses;
byte lost;
bool is_over;

/* usage_receive(): the batch, unless its number was written. */
inline write_batch(s, b, c, k)
{
	if
	:: noted[s] >= b -> skip
	:: else ->
		table = table + c - MIN(k, table);
#ifndef MUTANT_NO_NOTE
		noted[s] = b;
#endif
		assert(table <= uses)
	fi
}

/* A backend of the primary. */
proctype receive(byte me, s, b, c, k)
{
	if
	:: atomic {
		!is_promoted && !is_over ->
			write_batch(s, b, c, k);
			if
			:: me == connection -> answer = WRITTEN; answered = table
			:: else
			fi
		}
	:: atomic {
		!is_promoted ->
			/* refused: rolled back */
			if
			:: me == connection -> answer = REFUSED
			:: else
			fi
		}
	:: is_promoted || is_over
	fi
}

/* usage_settle() */
inline settle()
{
	if
	:: known == copied ->
		known = known + MAX(answered, copied) - copied;
		count = count + MAX(answered, copied) - copied
	:: else
	fi;
	is_full = false;
	copied = 0;
	known0 = 0
}

inline give_back()
{
	known = known - (copied - known0);
	is_full = false;
	copied = 0;
	known0 = 0
}

/* fill_outbox() */
inline fill()
{
#ifndef MUTANT_ONE_NUMBER
	batch++;
#else
	batch = 1;
#endif
	in_doubt = false;
	is_full = true;
	copied = count;
	known0 = known;
	known = count
}

/* send_outbox() */
inline send()
{
	atomic {
		connection++;
		answer = NOTHING;
		was_in_doubt = in_doubt;
		in_doubt = true;
		run receive(connection, sender, batch, copied, known0)
	}
	if
	:: atomic {
		answer == WRITTEN -> settle(); connection++
		}
	:: atomic {
		answer == REFUSED -> connection++;
#ifndef MUTANT_REFUSAL_ENDS
			if
			:: !was_in_doubt -> give_back()
			:: else
			fi
#else
			give_back()
#endif
		}
	:: atomic {
		/* no answer, or the worker ends */
		true -> connection++
#ifdef MUTANT_GIVE_BACK
			; give_back()
#endif
		}
	fi;
	answer = NOTHING;
	answered = 0
}

active proctype standby()
{
	byte sends;
	bool was_in_doubt;

	do
	:: atomic { uses < USES -> uses++; count++ }
	:: sends < SENDS && (is_full || count > known) ->
		sends++;
		atomic {
			if
			:: !is_full -> fill()
			:: else
			fi
		}
		send()
	:: atomic {
		/* The memory is lost; the entry is made anew from this server's table. */
		sender == 1 && uses > 0 ->
			lost = uses - replica;
			sender = 2;
			count = replica;
			known = replica;
			batch = 0;
			is_full = false;
			in_doubt = false;
			copied = 0;
			known0 = 0
		}
	:: uses == USES -> break
	od;

	/* The promotion: its table is the replica. */
	atomic {
		assert(is_full || count != known || sender == 2 || table == uses);
		is_promoted = true;
		table = replica;
		noted[1] = replica_noted[1];
		noted[2] = replica_noted[2]
	}
	if
	:: is_full -> atomic { write_batch(sender, batch, copied, known0) }
		/* So the next worker may deliver it again, if this one ends here. */
		assert(noted[sender] >= batch);
		atomic { answered = table; settle() }
	:: else
	fi;
	/* usage_note_recovery() makes all entries dirty; then a flush */
	atomic {
		if
#ifdef MUTANT_NOT_ALL_DIRTY
		:: count == known
#endif
		:: else -> table = table + count - MIN(known, table)
		fi;
		assert(table <= uses);
		assert(table >= uses - lost);
		assert(sender == 2 || table == uses);
		is_over = true
	}
}

active proctype replication()
{
	do
	:: atomic {
		!is_promoted && (replica != table || replica_noted[1] != noted[1] || replica_noted[2] != noted[2]) ->
			replica = table;
			replica_noted[1] = noted[1];
			replica_noted[2] = noted[2]
		}
	:: is_promoted -> break
	od
}
