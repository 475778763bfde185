/*
 * receive.h
 *		Use of keys that another server has counted and sends here.
 */
#ifndef RECEIVE_H
#define RECEIVE_H

#include "usage.h"

extern void receive_batch(const uint8 *sender, int64 batch, UsageCopy *copies,
						  int count, bool *flushed, bool *gone);

#endif
