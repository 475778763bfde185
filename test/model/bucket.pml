/*
 * bucket.pml: a rate limit whose takes may be given back.
 *
 * Three clients take a cost from both of two buckets, all or nothing.  Then each
 * keeps it (charge now, or COMMIT) or gives it back (ROLLBACK).  One tick is the
 * time in which one unit comes back.
 */
#define CLIENTS 3
#define MAX_NOW 3
#define WINDOW(b) (3 - (b))		/* ticks, and so units, of bucket b */
#define MAX(a, b) ((a) > (b) -> (a) : (b))
#define MIN(a, b) ((a) < (b) -> (a) : (b))

mtype = { OPEN, KEPT, GONE };

/* Of the code. */
typedef Bucket
{
	byte arrival;			/* when all that was taken has come back */
	byte returned;			/* ticks that were given back; only grows */
	byte reserved			/* units whose takers may give them back */
};

/* Of the check: every take, in the order of the bucket. */
typedef Log
{
	byte count;
	byte at[CLIENTS];
	byte cost[CLIENTS];
	mtype outcome[CLIENTS]
};

Bucket bucket[2];
Log log[2];
bool exact[2] = true;		/* all that was given back came back in full */
byte now;
byte started;
byte ended;

/*
 * The shadow is a bucket that only the kept takes have ever reached.  It must
 * have admitted each of them, and must never be fuller than the real one.
 */
inline check(b)
{
	i = 0;
	shadow = 0;
	do
	:: i < log[b].count ->
		if
		:: log[b].outcome[i] == KEPT ->
			shadow = MAX(shadow, log[b].at[i]) + log[b].cost[i];
			assert(shadow <= log[b].at[i] + WINDOW(b))
		:: else
		fi;
		i++
	:: else -> break
	od;
	assert(MAX(bucket[b].arrival, now) >= MAX(shadow, now));
	assert(bucket[b].reserved > 0 || !exact[b] ||
		   MAX(bucket[b].arrival, now) == MAX(shadow, now));
	i = 0;
	shadow = 0
}

inline take(b)
{
	atomic {
		start = MAX(bucket[b].arrival, now);
		if
		:: start + cost > now + WINDOW(b) -> granted = false
		:: else ->
			granted = true;
			bucket[b].arrival = start + cost;
			bucket[b].reserved = bucket[b].reserved + cost;
			end_[b] = bucket[b].arrival;
			returned0[b] = bucket[b].returned;
			number[b] = log[b].count;
			log[b].at[number[b]] = now;
			log[b].cost[number[b]] = cost;
			log[b].outcome[number[b]] = OPEN;
			log[b].count++
		fi;
		start = 0
	}
}

/* Dead values are zeroed, here and below, so that there are fewer states. */
inline forget(b)
{
	bucket[b].reserved = bucket[b].reserved - cost;
	number[b] = 0;
	end_[b] = 0;
	returned0[b] = 0
}

inline keep(b)
{
	log[b].outcome[number[b]] = KEPT;
	forget(b);
	check(b)
}

inline subtract(b)
{
	bucket[b].arrival = bucket[b].arrival - undrained;
	bucket[b].returned = bucket[b].returned + undrained
}

inline give_back(b)
{
	atomic {
#ifdef MUTANT_NO_SHIFT
		undrained = end_[b] - now;
#else
		undrained = end_[b] - (bucket[b].returned - returned0[b]) - now;
#endif
		undrained = MIN(cost, MAX(0, undrained));
#ifdef MUTANT_ALL_BACK
		undrained = MIN(cost, bucket[b].arrival);
#endif
		if
		:: undrained < cost -> exact[b] = false
		:: else
		fi;
		subtract(b);
#ifdef MUTANT_TWICE
		undrained = MIN(undrained, bucket[b].arrival);
		subtract(b);
#endif
		undrained = 0;
		log[b].outcome[number[b]] = GONE;
		log[b].cost[number[b]] = 0;
		log[b].at[number[b]] = 0;
		forget(b);
		check(b)
	}
}

active [CLIENTS] proctype client()
{
	byte cost, start, number[2], end_[2], returned0[2], i, shadow;
	short undrained;
	bool granted;

	/* The clients are alike, so one order of their first steps is enough. */
	atomic {
		started == _pid;
		started++;
		if
		:: cost = 1
		:: cost = 2
		fi;
		take(0)
	}
	if
	:: granted ->
		take(1);
		if
		:: !granted -> give_back(0)
		:: granted -> atomic { keep(0); keep(1) }
		:: granted -> give_back(1); give_back(0)
		fi
	:: else
	fi;
	ended++
}

/* Makes room: a bucket that is full again begins anew. */
active proctype evictor()
{
	do
	:: atomic {
		bucket[0].returned > 0 && bucket[0].arrival <= now &&
#ifndef MUTANT_EVICT_RESERVED
		bucket[0].reserved == 0 &&
#endif
		true ->
			bucket[0].arrival = 0;
			bucket[0].returned = 0
		}
	:: now == MAX_NOW && ended == CLIENTS -> break
	od;
	assert(bucket[0].reserved + bucket[1].reserved == 0)
}

active proctype clock()
{
	do
	:: now < MAX_NOW -> now++
	:: else -> break
	od
}
