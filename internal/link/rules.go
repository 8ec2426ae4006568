package link

// rule names a rule of the protocol of which the models (internal/model) or the simulation show that nothing works without
// it, by the way in which it is broken. In a build with the tag mutant, and in no other, one of them can be broken on
// purpose: TestMutants proves that the simulation notices each.
type rule int

// The ways to break a rule.
const (
	none               rule = iota
	ackAgainstNext          // an ACK is compared with the next byte to send, not with the highest ever sent
	proxyKeepsOld           // the proxy goes on reading an old connection after it accepted a new one
	bridgeKeepsOld          // the bridge goes on reading an old connection after it dialled a new one
	countBeforeFence        // the bridge counts what it has before it fences the old connection
	anyGeneration           // the proxy accepts an ATTACH that is older than the last one
	lateEndCounts           // the end of an old connection is taken for that of the present one
	freeOnWrite             // bytes that were written to a connection are freed before the peer has them
	relativeOffsets         // DATA belongs behind what came last, whatever its offset says
	creditGoesBack          // the last credit counts, not the highest
	anyPosition             // a table may name any position
	opensOutOfOrder         // OPENs that were lost queue behind those of later ids
	endSentOnce             // an END is not repeated after a break
	resetNotRetained        // the opener forgets a stream that it reset before the other end knows
	otherEndForgets         // the end that did not open a stream forgets it, once finished, before the opener does
	unknownIsFinished       // the opener takes a stream that the other end does not know for one that finished
	endUnchecked            // an END is believed whatever its checksum
	resumeUnchecked         // a table is believed whatever its checksums
	endedIsFree             // what an ended stream still has to deliver is not charged
	oneNumbering            // the dialling end does not mark its ids
	missingIsForgotten      // the dialling end forgets what the table of the other end lacks, its own streams too
	rules                   // how many there are
)

var ruleNames = [rules]string{
	"none", "ackAgainstNext", "proxyKeepsOld", "bridgeKeepsOld", "countBeforeFence", "anyGeneration", "lateEndCounts",
	"freeOnWrite", "relativeOffsets", "creditGoesBack", "anyPosition", "opensOutOfOrder", "endSentOnce", "resetNotRetained",
	"otherEndForgets", "unknownIsFinished", "endUnchecked", "resumeUnchecked", "endedIsFree",
	"oneNumbering", "missingIsForgotten",
}
